{
  description = "Java with Maven and Gradle";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
