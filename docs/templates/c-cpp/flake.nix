{
  description = "C and C++ with CMake, Ninja and a debugger";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
