# needs: packages
# Importing the module and enabling nothing gives the identical system.
{ nixpkgs, system, ... }:
let
  toplevel =
    modules:
    (nixpkgs.lib.nixosSystem {
      modules = modules ++ [
        {
          boot.isContainer = true;
          nixpkgs.hostPlatform = system;
          system.stateVersion = "26.05";
        }
      ];
    }).config.system.build.toplevel.drvPath;
in
toplevel [ ] == toplevel [ ../../../modules ]
