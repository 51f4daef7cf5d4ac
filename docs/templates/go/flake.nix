{
  description = "Go with its tools";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
