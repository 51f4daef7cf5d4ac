# needs: packages
# What programs and services of a development machine come to, by options that both bases have: the same on both.
{
  lib,
  nixpkgs,
  system,
  ...
}:
let
  inherit
    (nixpkgs.lib.nixosSystem {
      inherit system;
      modules = [
        (
          { pkgs, ... }:
          {
            system.stateVersion = "25.11";
            documentation.enable = false;
            networking.hostName = "dev";
            users.users.bob = {
              isNormalUser = true;
              shell = pkgs.zsh;
            };
            programs = {
              git = {
                enable = true;
                config = {
                  init.defaultBranch = "main";
                  alias.st = "status";
                };
              };
              ssh.knownHosts.example.publicKey = "ssh-ed25519 AAAA";
              zsh.enable = true;
              vim = {
                enable = true;
                defaultEditor = true;
              };
              htop = {
                enable = true;
                settings.hide_kernel_threads = true;
              };
              tmux.enable = true;
              direnv.enable = true;
            };
            services = {
              openssh = {
                enable = true;
                startWhenNeeded = false;
                settings.PasswordAuthentication = false;
              };
              postgresql = {
                enable = true;
                ensureDatabases = [ "app" ];
                ensureUsers = [
                  {
                    name = "app";
                    ensureDBOwnership = true;
                  }
                ];
                settings.max_connections = 50;
              };
              redis.servers.cache = {
                enable = true;
                port = 6380;
              };
              nginx = {
                enable = true;
                virtualHosts.localhost.locations."/".proxyPass = "http://127.0.0.1:3000";
              };
              mysql = {
                enable = true;
                package = pkgs.mariadb;
                ensureDatabases = [ "app" ];
              };
              memcached.enable = true;
              cron.systemCronJobs = [ "* * * * * root true" ];
            };
            virtualisation.podman.enable = true;
          }
        )
      ];
    })
    config
    ;
  unit = name: {
    inherit (config.systemd.services.${name}) wantedBy;
    user = config.systemd.services.${name}.serviceConfig.User or null;
  };
in
{
  failed = lib.filter (lib.hasPrefix "services") (
    map (a: a.message) (lib.filter (a: !a.assertion) config.assertions)
  );
  gitconfig = config.environment.etc.gitconfig.text;
  knownHosts = config.environment.etc."ssh/ssh_known_hosts".text;
  editor = config.environment.variables.EDITOR;
  ports = config.networking.firewall.allowedTCPPorts;
  units = lib.genAttrs [
    "sshd"
    "postgresql"
    "redis-cache"
    "nginx"
    "mysql"
    "memcached"
    "cron"
  ] unit;
  uids = lib.genAttrs [
    "postgres"
    "nginx"
    "mysql"
  ] (name: config.users.users.${name}.uid);
  postgresql = {
    inherit (config.services.postgresql.settings) port max_connections listen_addresses;
  };
  redis = removeAttrs config.services.redis.servers.cache.settings [ "unixsocketperm" ];
  sshd = {
    inherit (config.services.openssh.settings) PasswordAuthentication PermitRootLogin UsePAM;
  };
  dataDirs = [ (toString config.services.mysql.dataDir) ];
}
