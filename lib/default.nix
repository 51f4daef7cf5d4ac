# Codchi's functions. `lib` is that of nixpkgs or of the built-in base.
{ lib }:
{
  version = import ./version.nix;
  codeMachine = import ./code-machine.nix;
  mkDriver = import ./mk-driver.nix;
  drivers = import ./drivers.nix;
  capabilities = import ./capabilities.nix;
  engine = import ./engine.nix { inherit lib; };
  size = import ./size.nix { inherit lib; };
  renderNeeds = import ./needs.nix { inherit lib; };
  renderManifest = import ./manifest.nix { inherit lib; };
  optionsReference = import ./options-reference.nix { inherit lib; };
}
