# The memcached server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.memcached;
in
{
  options.services.memcached = {
    enable = mkEnableOption "Memcached";
    user = mkOption {
      type = types.str;
      default = "memcached";
      description = "User it runs as.";
    };
    listen = mkOption {
      type = types.str;
      default = "127.0.0.1";
      description = "Address.";
    };
    port = mkOption {
      type = types.port;
      default = 11211;
      description = "Port.";
    };
    enableUnixSocket = mkEnableOption "a socket in /run/memcached instead of an address";
    maxMemory = mkOption {
      type = types.ints.unsigned;
      default = 64;
      description = "Memory in megabytes.";
    };
    maxConnections = mkOption {
      type = types.ints.unsigned;
      default = 1024;
      description = "Connections at once.";
    };
    extraOptions = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments.";
    };
  };

  config = lib.mkIf cfg.enable {
    users.users = lib.optionalAttrs (cfg.user == "memcached") {
      memcached = {
        description = "Memcached server user";
        isSystemUser = true;
        group = "memcached";
      };
    };
    users.groups = lib.optionalAttrs (cfg.user == "memcached") { memcached = { }; };
    environment.systemPackages = [ pkgs.memcached ];
    systemd.services.memcached = {
      description = "Memcached server";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      serviceConfig = {
        ExecStart = lib.concatStringsSep " " (
          [ "${pkgs.memcached}/bin/memcached" ]
          ++ (
            if cfg.enableUnixSocket then
              [ "-s /run/memcached/memcached.sock" ]
            else
              [
                "-l ${cfg.listen}"
                "-p ${toString cfg.port}"
              ]
          )
          ++ [
            "-m ${toString cfg.maxMemory}"
            "-c ${toString cfg.maxConnections}"
          ]
          ++ cfg.extraOptions
        );
        User = cfg.user;
        RuntimeDirectory = "memcached";
        NoNewPrivileges = true;
      };
    };
  };
}
