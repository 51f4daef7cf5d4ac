{
  description = "An empty machine, to be filled";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
