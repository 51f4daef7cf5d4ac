# Programs that need more than their package: start-up files, environment, settings.
{
  imports = [
    ./desktop.nix
    ./direnv.nix
    ./editors.nix
    ./fish.nix
    ./git.nix
    ./gnupg.nix
    ./languages.nix
    ./pagers.nix
    ./simple.nix
    ./ssh.nix
    ./starship.nix
    ./terminals.nix
    ./zsh.nix
  ];
}
