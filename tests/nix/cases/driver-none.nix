# Without a driver: user, secrets and init script, and nothing of a host.
{
  lib,
  nixpkgs,
  system,
  ...
}:
let
  inherit
    (nixpkgs.lib.nixosSystem {
      modules = [
        ../../../modules
        {
          nixpkgs.hostPlatform = system;
          boot.isContainer = true;
          system.stateVersion = "26.05";
          codchi = {
            enable = true;
            initScript = "true";
            secrets.TOKEN = { };
          };
        }
      ];
    })
    config
    ;
in
{
  user = config.users.users.codchi.uid;
  hasAgent = config.systemd.services ? codchi-agent;
  initUnit = config.systemd.services.codchi-init.wantedBy;
  carriesManifest = lib.hasInfix "codchi/manifest.json" config.system.systemBuilderCommands;
  readsSecrets = lib.hasInfix "/etc/codchi-env" config.environment.extraInit;
}
