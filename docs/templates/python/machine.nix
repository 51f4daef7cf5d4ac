{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.gcc
    pkgs.git
    pkgs.gnumake
    pkgs.python3
    pkgs.python3Packages.pip
    pkgs.python3Packages.virtualenv
  ];

  environment.variables.PIP_REQUIRE_VIRTUALENV = "true";

  codchi.initScript = ''
    mkdir -p ~/project
    cd ~/project
    [ -d .venv ] || virtualenv .venv
  '';
}
