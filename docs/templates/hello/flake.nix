{
  description = "A first machine: a package, a variable, a service, an init script";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
