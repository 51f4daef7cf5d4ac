# The Caddy web server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines;
  cfg = config.services.caddy;
  host =
    { name, config, ... }:
    {
      options = {
        hostName = mkOption {
          type = types.str;
          default = name;
          description = "Name of the host.";
        };
        serverAliases = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Further names.";
        };
        listenAddresses = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Addresses it listens on; none: all.";
        };
        logFormat = mkOption {
          type = types.nullOr types.lines;
          default = null;
          description = "How requests are logged.";
        };
        extraConfig = lines "Lines of its block.";
      };
    };
  block = h: ''
    ${lib.concatStringsSep " " ([ h.hostName ] ++ h.serverAliases)} {
    ${lib.optionalString (
      h.listenAddresses != [ ]
    ) "bind ${lib.concatStringsSep " " h.listenAddresses}"}
    ${lib.optionalString (h.logFormat != null) "log {\n${h.logFormat}\n}"}
    ${h.extraConfig}
    }
  '';
  caddyfile = pkgs.writeText "Caddyfile" ''
    {
    ${lib.optionalString (cfg.email != null) "email ${cfg.email}"}
    ${lib.optionalString (cfg.acmeCA != null) "acme_ca ${cfg.acmeCA}"}
    log {
    ${cfg.logFormat}
    }
    ${cfg.globalConfig}
    }
    ${cfg.extraConfig}
    ${lib.concatMapStrings block (lib.attrValues cfg.virtualHosts)}
  '';
in
{
  options.services.caddy = {
    enable = mkEnableOption "Caddy web server";
    package = lib.mkPackageOption pkgs "caddy" { };
    user = mkOption {
      type = types.str;
      default = "caddy";
      description = "User it runs as.";
    };
    group = mkOption {
      type = types.str;
      default = "caddy";
      description = "Group it runs as.";
    };
    dataDir = mkOption {
      type = types.path;
      default = "/var/lib/caddy";
      description = "Folder of the data.";
    };
    logDir = mkOption {
      type = types.path;
      default = "/var/log/caddy";
      description = "Folder of the logs.";
    };
    logFormat = mkOption {
      type = types.lines;
      default = "level ERROR";
      description = "How it logs.";
    };
    configFile = mkOption {
      type = types.path;
      default = caddyfile;
      defaultText = lib.literalExpression "what the other options give";
      description = "The whole configuration.";
    };
    adapter = mkOption {
      type = types.nullOr types.str;
      default = "caddyfile";
      description = "What reads it.";
    };
    resume = mkOption {
      type = types.bool;
      default = false;
      description = "Whether a configuration set while running is kept.";
    };
    enableReload = mkOption {
      type = types.bool;
      default = true;
      description = "Whether a changed configuration is loaded without a restart.";
    };
    globalConfig = lines "Lines of the global block.";
    extraConfig = lines "Further lines.";
    virtualHosts = mkOption {
      type = types.attrsOf (types.submodule host);
      default = { };
      description = "Virtual hosts.";
    };
    acmeCA = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The authority certificates come from.";
    };
    email = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The address the authority writes to.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."caddy/Caddyfile".source = cfg.configFile;
    users.users = lib.optionalAttrs (cfg.user == "caddy") {
      caddy = {
        inherit (cfg) group;
        uid = 239;
        home = cfg.dataDir;
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "caddy") { caddy.gid = 239; };
    systemd.services.caddy = {
      description = "Caddy";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      reloadTriggers = lib.optional cfg.enableReload cfg.configFile;
      restartTriggers = lib.optional (!cfg.enableReload) cfg.configFile;
      environment.XDG_DATA_HOME = toString cfg.dataDir;
      environment.XDG_CONFIG_HOME = toString cfg.dataDir;
      serviceConfig =
        let
          options = "--config /etc/caddy/Caddyfile${
            lib.optionalString (cfg.adapter != null) " --adapter ${cfg.adapter}"
          }";
        in
        {
          Type = "notify";
          ExecStart = "${cfg.package}/bin/caddy run ${options}${lib.optionalString cfg.resume " --resume"}";
          ExecReload = "${cfg.package}/bin/caddy reload ${options} --force";
          User = cfg.user;
          Group = cfg.group;
          StateDirectory = lib.mkIf (toString cfg.dataDir == "/var/lib/caddy") "caddy";
          LogsDirectory = lib.mkIf (toString cfg.logDir == "/var/log/caddy") "caddy";
          AmbientCapabilities = "CAP_NET_BIND_SERVICE";
          NoNewPrivileges = true;
          PrivateDevices = true;
          Restart = "on-failure";
          RestartSec = "5s";
        };
    };
  };
}
