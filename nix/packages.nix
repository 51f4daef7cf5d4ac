# Codchi's programs, built from rust/Cargo.lock.
{ pkgs }:
let
  inherit (pkgs) lib;
  root = ../.;
  codchi = pkgs.rustPlatform.buildRustPackage {
    pname = "codchi";
    version = import ../lib/version.nix;

    # The programs, and the Nix sources that codchi carries.
    src = lib.fileset.toSource {
      inherit root;
      fileset = lib.fileset.unions [
        ../rust
        ../flake.nix
        ../flake.lock
        ../lib
        ../modules
        ../drivers
        ../docs/templates
      ];
    };
    cargoRoot = "rust";
    buildAndTestSubdir = "rust";
    cargoLock.lockFile = ../rust/Cargo.lock;
    cargoBuildFlags = [ "--package=codchi" ];

    # The programs for inside a machine are linked statically.
    buildInputs = [ pkgs.glibc.static ];

    # The tests start namespaces and mounts, which a build sandbox does not allow; `.ci/run` runs them.
    doCheck = false;

    meta = {
      description = "Make and use code machines";
      license = [
        lib.licenses.mit
        lib.licenses.asl20
      ];
      mainProgram = "codchi";
      platforms = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    };
  };
in
{
  inherit codchi;
  default = codchi;
}
