# Every concern can be imported by itself.
{
  lib,
  nixpkgs,
  system,
  ...
}:
lib.mapAttrs (
  _: module:
  builtins.isBool
    (nixpkgs.lib.nixosSystem {
      modules = [
        module
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = "26.05";
        }
      ];
    }).config.boot.isContainer
) (import ../../../lib/module-list.nix)
