# Evaluates one case. `nixpkgs` is a flake: nixpkgs itself or the built-in base.
{
  nixpkgs,
  case,
  system ? "x86_64-linux",
}:
let
  inherit (nixpkgs) lib;
  codchi = import ../../lib { inherit lib; };

  # The native machine of some modules.
  machine =
    modules:
    (codchi.codeMachine {
      inputs = { inherit nixpkgs; };
      inherit system modules;
      stateVersion = "26.05";
    }).nixosConfigurations.native;
in
import case {
  inherit
    codchi
    lib
    machine
    nixpkgs
    system
    ;
}
