# An option without a value is named.
{ lib, ... }:
(lib.evalModules { modules = [ { options.must.be = lib.mkOption { type = lib.types.int; }; } ]; })
.config.must.be
