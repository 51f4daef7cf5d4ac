{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.gcc
    pkgs.git
    pkgs.gnumake
    pkgs.go
    pkgs.gopls
  ];

  environment.extraInit = ''
    export PATH="$HOME/go/bin:$PATH"
  '';
}
