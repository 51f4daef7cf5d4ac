# Evaluates one case. `nixpkgs` is a flake: nixpkgs itself or the built-in base.
{
  nixpkgs,
  case,
  system ? "x86_64-linux",
}:
let
  inherit (nixpkgs) lib;
  codchi = import ../../lib { inherit lib; };

  # The machines of some modules, by driver.
  machines =
    modules:
    (codchi.codeMachine {
      inputs = { inherit nixpkgs; };
      inherit system modules;
      stateVersion = "26.05";
    }).nixosConfigurations;

  # The native one.
  machine = modules: (machines modules).native;
in
import case {
  inherit
    codchi
    lib
    machine
    machines
    nixpkgs
    system
    ;
}
