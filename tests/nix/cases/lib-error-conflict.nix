# Two values for one place are both shown.
{ lib, ... }:
(lib.evalModules {
  modules = [
    { options.name = lib.mkOption { type = lib.types.str; }; }
    {
      _file = "a.nix";
      name = "a";
    }
    {
      _file = "b.nix";
      name = "b";
    }
  ];
}).config.name
