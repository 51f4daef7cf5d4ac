# Nix inside talks to the host's daemon and finds the machine's own nixpkgs.
{ machine, nixpkgs, ... }:
let
  inherit (machine [ ]) config;
  registry = config.nix.registry.nixpkgs.to;
in
{
  inherit (config.nix.settings) store experimental-features;
  inherit (config.nix) nixPath;
  registryType = registry.type;
  linkIsOwn = "${config.environment.etc."nix/nixpkgs".source}" == "${nixpkgs}";
  registryIsOwn = "${registry.path}" == "${nixpkgs}";
  daemon = {
    service = config.systemd.services.nix-daemon.enable;
    socket = config.systemd.sockets.nix-daemon.enable;
  };
}
