{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.git
    pkgs.nodejs
    pkgs.python3
  ];

  # Global packages go to the home directory: no sudo.
  environment.variables.NPM_CONFIG_PREFIX = "$HOME/.local";
  environment.extraInit = ''
    export PATH="$HOME/.local/bin:$PATH"
  '';

  # The usual port of development servers, asked for on the host (a driver that forwards ports gives it).
  codchi.ports."3000" = { };
}
