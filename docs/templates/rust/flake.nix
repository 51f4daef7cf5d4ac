{
  description = "Rust with clippy, rustfmt and a linker";

  outputs = _: {
    nixosModules.default = ./machine.nix;
  };
}
