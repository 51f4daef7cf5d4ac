# What every machine runs: the bus, the journal, logins.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) free lines yes;
  cfg = config.services;
  settings =
    description:
    mkOption {
      type = types.attrsOf (
        types.nullOr (
          types.oneOf [
            types.bool
            types.int
            types.str
          ]
        )
      );
      default = { };
      inherit description;
    };
  ini =
    section: values:
    "[${section}]\n"
    + lib.concatStrings (
      lib.mapAttrsToList (
        k: v: lib.optionalString (v != null) "${k}=${if lib.isBool v then lib.boolToString v else toString v}\n"
      ) values
    );
in
{
  options.services = {
    dbus = {
      enable = yes true "Whether the message bus runs.";
      packages = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Packages whose bus services and policies are taken.";
      };
      implementation = mkOption {
        type = types.enum [
          "dbus"
          "broker"
        ];
        default = "dbus";
        description = "Accepted; the bus is dbus-daemon.";
      };
      apparmor = mkOption {
        type = types.str;
        default = "disabled";
        description = "Accepted.";
      };
    };
    journald = {
      extraConfig = lines "Further lines of journald.conf.";
      storage = mkOption {
        type = types.enum [
          "persistent"
          "volatile"
          "auto"
          "none"
        ];
        default = "persistent";
        description = "Where the journal is kept.";
      };
      rateLimitInterval = mkOption {
        type = types.str;
        default = "30s";
        description = "Interval of the rate limit.";
      };
      rateLimitBurst = mkOption {
        type = types.int;
        default = 10000;
        description = "Messages per interval.";
      };
      console = mkOption {
        type = types.str;
        default = "";
        description = "Terminal that shows the journal.";
      };
      forwardToSyslog = yes false "Whether messages go to a syslog daemon.";
      audit = mkOption {
        type = types.nullOr types.anything;
        default = null;
        description = "Accepted.";
      };
    };
    logind = {
      settings.Login = settings "Settings of logind.conf.";
      extraConfig = lines "Further lines of logind.conf.";
      killUserProcesses = yes false "Whether a logout ends a user's processes.";
      lidSwitch = mkOption {
        type = types.str;
        default = "ignore";
        description = "Accepted.";
      };
    };
    udev = {
      enable = yes false "Accepted; devices are the host's.";
      packages = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Accepted; devices are the host's.";
      };
      extraRules = lines "Accepted; devices are the host's.";
      extraHwdb = lines "Accepted; devices are the host's.";
      path = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Accepted.";
      };
    };
    getty = free "Accepted; a container has no terminals of its own.";
    timesyncd.enable = yes false "Accepted; the clock is the host's.";
    resolved.enable = yes false "Accepted; the resolver is the host's.";
    nscd.enable = yes false "Accepted; name services are not cached.";
    xserver = {
      enable = yes false "Accepted; the display is the host's.";
      xkb = free "Accepted; the keyboard is the host's.";
      videoDrivers = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Accepted; drivers are the host's.";
      };
    };
  };

  config = {
    environment.systemPackages = cfg.dbus.packages;
    environment.etc = {
      "systemd/journald.conf".text =
        ini "Journal" {
          Storage = cfg.journald.storage;
          RateLimitInterval = cfg.journald.rateLimitInterval;
          RateLimitBurst = cfg.journald.rateLimitBurst;
          ForwardToSyslog = cfg.journald.forwardToSyslog;
          # The kernel's log and the audit are not a container's.
          ReadKMsg = false;
          Audit = false;
          SystemMaxUse = "256M";
        }
        + cfg.journald.extraConfig;
      "systemd/logind.conf".text =
        ini "Login" (
          {
            KillUserProcesses = cfg.logind.killUserProcesses;
            NAutoVTs = 0;
            ReserveVT = 0;
          }
          // cfg.logind.settings.Login
        )
        + cfg.logind.extraConfig;
    }
    // lib.optionalAttrs (cfg.dbus.packages != [ ]) (
      let
        outside = pkgs.buildEnv {
          name = "dbus-packages";
          paths = cfg.dbus.packages;
          pathsToLink = [
            "/share/dbus-1"
            "/etc/dbus-1"
          ];
        };
        text = bus: ''
          <!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
          <busconfig>
            <servicedir>${outside}/share/dbus-1/${if bus == "system" then "system-services" else "services"}</servicedir>
            <includedir>${outside}/share/dbus-1/${bus}.d</includedir>
            <includedir>${outside}/etc/dbus-1/${bus}.d</includedir>
          </busconfig>
        '';
      in
      {
        "dbus-1/system-local.conf".text = text "system";
        "dbus-1/session-local.conf".text = text "session";
      }
    );
  };
}
