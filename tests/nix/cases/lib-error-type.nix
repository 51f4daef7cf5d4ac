# A value of another type is shown with its file and the full path, in a submodule too.
{ lib, ... }:
(lib.evalModules {
  modules = [
    {
      options.sites = lib.mkOption {
        type = lib.types.attrsOf (
          lib.types.submodule { options.port = lib.mkOption { type = lib.types.port; }; }
        );
      };
    }
    {
      _file = "person.nix";
      sites.a.port = "http";
    }
  ];
}).config.sites.a.port
