# Redis servers, by name; the one without a name is `redis.service`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.redis;
  enabled = lib.filterAttrs (_: s: s.enable) cfg.servers;
  unit = name: "redis" + lib.optionalString (name != "") "-${name}";

  one =
    v:
    if v == true then
      "yes"
    else if v == false then
      "no"
    else
      toString v;
  configOf =
    name: s:
    pkgs.writeText "${unit name}.conf" (
      lib.generators.toKeyValue {
        listsAsDuplicateKeys = true;
        mkKeyValue = lib.generators.mkKeyValueDefault { mkValueString = one; } " ";
      } (lib.filterAttrs (_: v: v != null) s.settings)
    );

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  server =
    { name, config, ... }:
    {
      options = {
        enable = mkEnableOption "Redis server";
        user = mkOption {
          type = types.str;
          default = unit name;
          defaultText = lib.literalExpression ''if name == "" then "redis" else "redis-''${name}"'';
          description = "User it runs as.";
        };
        group = mkOption {
          type = types.str;
          default = config.user;
          defaultText = lib.literalExpression "config.user";
          description = "Group it runs as.";
        };
        port = mkOption {
          type = types.port;
          default = if name == "" then 6379 else 0;
          defaultText = lib.literalExpression ''if name == "" then 6379 else 0'';
          description = "Port; 0: none.";
        };
        openFirewall = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the port is open in the firewall.";
        };
        extraParams = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Further arguments.";
        };
        bind = mkOption {
          type = types.nullOr types.str;
          default = "127.0.0.1";
          description = "Address; null: all.";
        };
        unixSocket = mkOption {
          type = types.nullOr types.path;
          default = "/run/${unit name}/redis.sock";
          defaultText = lib.literalExpression ''"/run/redis/redis.sock" or "/run/redis-''${name}/redis.sock"'';
          description = "The socket.";
        };
        unixSocketPerm = mkOption {
          type = types.int;
          default = 660;
          description = "Mode of the socket.";
        };
        logLevel = mkOption {
          type = types.str;
          default = "notice";
          description = "How much is logged.";
        };
        logfile = mkOption {
          type = types.str;
          default = "/dev/null";
          description = "The log, besides that of the system.";
        };
        syslog = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the system's log has it.";
        };
        databases = mkOption {
          type = types.int;
          default = 16;
          description = "How many databases there are.";
        };
        maxclients = mkOption {
          type = types.int;
          default = 10000;
          description = "How many clients at once.";
        };
        save = mkOption {
          type = types.listOf (types.listOf types.int);
          default = [
            [
              900
              1
            ]
            [
              300
              10
            ]
            [
              60
              10000
            ]
          ];
          description = "When the data is saved: seconds and changes.";
        };
        slaveOf = mkOption {
          type = types.nullOr (
            types.submodule {
              options = {
                ip = mkOption {
                  type = types.str;
                  description = "Address of the primary.";
                };
                port = mkOption {
                  type = types.port;
                  default = 6379;
                  description = "Its port.";
                };
              };
            }
          );
          default = null;
          description = "The server this one repeats.";
        };
        masterAuth = optional types.str "Password of the primary.";
        requirePass = optional types.str "Password of clients; it lies in the store for all to read.";
        requirePassFile = optional types.path "A file with the password of clients.";
        masterAuthFile = optional types.path "A file with the password of the primary.";
        appendOnly = mkOption {
          type = types.bool;
          default = false;
          description = "Whether changes are written as they come.";
        };
        appendFsync = mkOption {
          type = types.str;
          default = "everysec";
          description = "How often they reach the disk.";
        };
        slowLogLogSlowerThan = mkOption {
          type = types.int;
          default = 10000;
          description = "Microseconds from which on a command is slow.";
        };
        slowLogMaxLen = mkOption {
          type = types.int;
          default = 128;
          description = "How many slow commands are kept.";
        };
        settings = mkOption {
          type = types.attrsOf (
            types.oneOf [
              types.bool
              types.int
              types.str
              (types.listOf types.str)
            ]
          );
          default = { };
          description = "Further settings of redis.conf.";
        };
      };
      config.settings = lib.mkMerge [
        {
          inherit (config)
            port
            logfile
            databases
            maxclients
            appendOnly
            ;
          daemonize = false;
          supervised = "systemd";
          loglevel = config.logLevel;
          syslog-enabled = config.syslog;
          save =
            if config.save == [ ] then
              ''""''
            else
              map (d: "${toString (lib.elemAt d 0)} ${toString (lib.elemAt d 1)}") config.save;
          dbfilename = "dump.rdb";
          dir = "/var/lib/${unit name}";
          appendfsync = config.appendFsync;
          slowlog-log-slower-than = config.slowLogLogSlowerThan;
          slowlog-max-len = config.slowLogMaxLen;
        }
        (lib.mkIf (config.bind != null) { inherit (config) bind; })
        (lib.mkIf (config.unixSocket != null) {
          unixsocket = toString config.unixSocket;
          unixsocketperm = toString config.unixSocketPerm;
        })
        (lib.mkIf (config.slaveOf != null) {
          slaveof = "${config.slaveOf.ip} ${toString config.slaveOf.port}";
        })
        (lib.mkIf (config.masterAuth != null) { masterauth = config.masterAuth; })
        (lib.mkIf (config.requirePass != null) { requirepass = config.requirePass; })
      ];
    };
in
{
  options.services.redis = {
    package = lib.mkPackageOption pkgs "redis" { };
    vmOverCommit = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted; the host decides about overcommitting memory.";
    };
    servers = mkOption {
      type = types.attrsOf (types.submodule server);
      default = { };
      description = "Servers by name.";
    };
  };

  config = lib.mkIf (enabled != { }) {
    assertions = lib.mapAttrsToList (name: s: {
      assertion = s.requirePass == null || s.requirePassFile == null;
      message = "`services.redis.servers.${name}': `requirePass' and `requirePassFile' are both set";
    }) enabled;
    environment.systemPackages = [ cfg.package ];
    networking.firewall.allowedTCPPorts = lib.concatLists (
      lib.mapAttrsToList (_: s: lib.optional (s.openFirewall && s.port != 0) s.port) enabled
    );
    users.users = lib.mapAttrs' (
      name: s:
      lib.nameValuePair s.user {
        description = "System user for the redis-server instance ${name}";
        isSystemUser = true;
        inherit (s) group;
      }
    ) (lib.filterAttrs (name: s: s.user == unit name) enabled);
    users.groups = lib.mapAttrs' (_: s: lib.nameValuePair s.group { }) (
      lib.filterAttrs (name: s: s.group == unit name) enabled
    );
    systemd.services = lib.mapAttrs' (
      name: s:
      lib.nameValuePair (unit name) {
        description = "Redis Server - ${unit name}";
        wantedBy = [ "multi-user.target" ];
        after = [ "network.target" ];
        # Redis rewrites its configuration, so it has one of its own that takes the generated one in.
        preStart = ''
          umask 077
          own=/var/lib/${unit name}/redis.conf
          { echo 'include "${configOf name s}"'
            ${lib.optionalString (
              s.requirePassFile != null
            ) ''echo "requirepass $(cat ${lib.escapeShellArg (toString s.requirePassFile)})"''}
            ${lib.optionalString (
              s.masterAuthFile != null
            ) ''echo "masterauth $(cat ${lib.escapeShellArg (toString s.masterAuthFile)})"''}
            :
          } > "$own"
        '';
        serviceConfig = {
          ExecStart = "${cfg.package}/bin/redis-server /var/lib/${unit name}/redis.conf ${lib.escapeShellArgs s.extraParams}";
          Type = "notify";
          User = s.user;
          Group = s.group;
          RuntimeDirectory = unit name;
          RuntimeDirectoryMode = "0750";
          StateDirectory = unit name;
          StateDirectoryMode = "0700";
          UMask = "0077";
          Restart = "always";
        };
      }
    ) enabled;
  };
}
