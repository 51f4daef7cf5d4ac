{
  description = "Node.js with npm";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
