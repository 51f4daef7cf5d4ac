# An option that nobody declares is named, with the file and the value.
{ lib, ... }:
(lib.evalModules {
  modules = [
    {
      options.services.web.port = lib.mkOption {
        type = lib.types.port;
        default = 80;
      };
    }
    {
      _file = "person.nix";
      services.web.prot = 8080;
    }
  ];
}).config.services.web.port
