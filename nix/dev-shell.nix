# What working on Codchi takes.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.cargo-nextest
    pkgs.clippy
    pkgs.jq
    pkgs.mdbook
    pkgs.nixfmt-tree
    pkgs.passt
    pkgs.rustc
    pkgs.rustfmt
    pkgs.shellcheck
  ];
  buildInputs = [ pkgs.glibc.static ];
}
