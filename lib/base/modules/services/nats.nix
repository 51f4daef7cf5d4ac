# The NATS message server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) yes;
  cfg = config.services.nats;
  format = pkgs.formats.json { };
  file = format.generate "nats.conf" cfg.settings;
in
{
  options.services.nats = {
    enable = yes false "Whether the NATS messaging server runs.";
    user = mkOption {
      type = types.str;
      default = "nats";
      description = "User it runs as.";
    };
    group = mkOption {
      type = types.str;
      default = "nats";
      description = "Group it runs as.";
    };
    serverName = mkOption {
      type = types.str;
      default = "nats";
      example = "n1-c3";
      description = "Name of the server; within a cluster each has its own.";
    };
    jetstream = yes false "Whether messages can be kept (JetStream).";
    port = mkOption {
      type = types.port;
      default = 4222;
      description = "Port.";
    };
    dataDir = mkOption {
      type = types.path;
      default = "/var/lib/nats";
      description = "Folder of the data; any but the default must be there already.";
    };
    validateConfig = yes true "Accepted; the server checks its configuration when it starts.";
    settings = mkOption {
      inherit (format) type;
      default = { };
      example = {
        monitor_port = 8222;
      };
      description = "Settings of the server.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.nats.settings = {
      server_name = cfg.serverName;
      port = cfg.port;
      jetstream = lib.optionalAttrs cfg.jetstream { store_dir = cfg.dataDir; };
    };
    users.users = lib.optionalAttrs (cfg.user == "nats") {
      nats = {
        description = "NATS daemon user";
        isSystemUser = true;
        inherit (cfg) group;
        home = cfg.dataDir;
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "nats") { nats = { }; };
    environment.systemPackages = [ pkgs.nats-server ];
    systemd.services.nats = {
      description = "NATS messaging server";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      serviceConfig = {
        ExecStart = "${pkgs.nats-server}/bin/nats-server -c ${file}";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        ExecStop = "${pkgs.coreutils}/bin/kill -SIGUSR2 $MAINPID";
        User = cfg.user;
        Group = cfg.group;
        StateDirectory = lib.mkIf (cfg.dataDir == "/var/lib/nats") "nats";
        StateDirectoryMode = "0750";
        WorkingDirectory = cfg.dataDir;
        LimitNOFILE = 19000;
        NoNewPrivileges = true;
        PrivateTmp = true;
        UMask = "0077";
        Restart = "on-failure";
      };
    };
  };
}
