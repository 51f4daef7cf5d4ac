{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.cargo
    pkgs.clippy
    pkgs.gcc
    pkgs.git
    pkgs.pkg-config
    pkgs.rustc
    pkgs.rustfmt
  ];

  environment.extraInit = ''
    export PATH="$HOME/.cargo/bin:$PATH"
  '';
}
