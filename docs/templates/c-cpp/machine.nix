{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.clang-tools
    pkgs.cmake
    pkgs.gcc
    pkgs.gdb
    pkgs.git
    pkgs.gnumake
    pkgs.ninja
    pkgs.pkg-config
    pkgs.valgrind
  ];
}
