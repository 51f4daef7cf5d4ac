{
  description = "A web application's surroundings: nginx, PostgreSQL, Redis";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
