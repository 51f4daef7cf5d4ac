# The package set, as `import <nixpkgs> { }` gives it.
{
  system ? localSystem.system or localSystem,
  localSystem ? builtins.currentSystem,
  lib ? import ./lib,
  config ? { },
  overlays ? [ ],
  ...
}:
import ./pkgs {
  inherit
    lib
    system
    config
    overlays
    ;
  path = ./.;
}
