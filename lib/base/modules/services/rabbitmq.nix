# The RabbitMQ message broker.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) yes;
  cfg = config.services.rabbitmq;
in
{
  options.services.rabbitmq = {
    enable = yes false "Whether the RabbitMQ server, a message broker, runs.";
    package = mkOption {
      type = types.package;
      default = pkgs.rabbitmq-server;
      defaultText = lib.literalExpression "pkgs.rabbitmq-server";
      description = "The package.";
    };
    listenAddress = mkOption {
      type = types.str;
      default = "127.0.0.1";
      description = "Address; empty: all.";
    };
    port = mkOption {
      type = types.port;
      default = 5672;
      description = "Port.";
    };
    dataDir = mkOption {
      type = types.path;
      default = "/var/lib/rabbitmq";
      description = "Folder of the data.";
    };
    cookie = mkOption {
      type = types.str;
      default = "";
      description = "The secret of a cluster; it lies in the store for all to read. None: one is made.";
    };
    configItems = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Settings of rabbitmq.conf.";
    };
    config = mkOption {
      type = types.str;
      default = "";
      description = "Settings of advanced.config.";
    };
    plugins = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Plugins that are on.";
    };
    managementPlugin = {
      enable = yes false "Whether the management plugin is on.";
      port = mkOption {
        type = types.port;
        default = 15672;
        description = "Its port.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    services.rabbitmq = {
      configItems = {
        "listeners.tcp.1" = lib.mkDefault "${cfg.listenAddress}:${toString cfg.port}";
      }
      // lib.optionalAttrs cfg.managementPlugin.enable {
        "management.tcp.port" = toString cfg.managementPlugin.port;
        "management.tcp.ip" = cfg.listenAddress;
      };
      plugins = lib.optional cfg.managementPlugin.enable "rabbitmq_management";
    };
    users.users.rabbitmq = {
      description = "RabbitMQ server user";
      home = "${cfg.dataDir}";
      createHome = true;
      group = "rabbitmq";
      uid = 61;
    };
    users.groups.rabbitmq.gid = 61;
    systemd.services.rabbitmq = {
      description = "RabbitMQ Server";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      environment = {
        RABBITMQ_MNESIA_BASE = "${cfg.dataDir}/mnesia";
        RABBITMQ_LOGS = "-";
        RABBITMQ_NODENAME = "rabbit@localhost";
        RABBITMQ_CONFIG_FILE = "${pkgs.writeText "rabbitmq.conf" (
          lib.concatStrings (lib.mapAttrsToList (n: v: "${n} = ${v}\n") cfg.configItems)
        )}";
        RABBITMQ_ENABLED_PLUGINS_FILE = "${pkgs.writeText "enabled_plugins" "[ ${lib.concatStringsSep "," cfg.plugins} ].\n"}";
        HOME = "${cfg.dataDir}";
      }
      // lib.optionalAttrs (cfg.config != "") {
        RABBITMQ_ADVANCED_CONFIG_FILE = "${pkgs.writeText "advanced.config" cfg.config}";
      };
      preStart = lib.optionalString (cfg.cookie != "") ''
        install -m 600 ${pkgs.writeText "cookie" cfg.cookie} ${lib.escapeShellArg cfg.dataDir}/.erlang.cookie
      '';
      serviceConfig = {
        # Debian's wrapper in /usr/sbin wants to be root; this is the server itself.
        ExecStart = "/usr/lib/rabbitmq/bin/rabbitmq-server";
        Type = "notify";
        NotifyAccess = "all";
        TimeoutStartSec = 300;
        User = "rabbitmq";
        Group = "rabbitmq";
        LogsDirectory = "rabbitmq";
        StateDirectory = lib.mkIf (cfg.dataDir == "/var/lib/rabbitmq") "rabbitmq";
        WorkingDirectory = cfg.dataDir;
        UMask = "0027";
        LimitNOFILE = 19000;
        Restart = "on-failure";
        RestartSec = 10;
      };
    };
  };
}
