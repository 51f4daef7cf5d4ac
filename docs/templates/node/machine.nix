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

  # The usual port of development servers is at http://localhost:3000 on the host.
  codchi.ports."3000" = { };
}
