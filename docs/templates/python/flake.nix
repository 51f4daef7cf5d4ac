{
  description = "Python with virtual environments and a C compiler for wheels";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
