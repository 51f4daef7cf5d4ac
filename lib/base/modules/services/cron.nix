# The cron daemon.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.cron;
  table =
    lib.optionalString (cfg.mailto != null) "MAILTO=\"${cfg.mailto}\"\n"
    + "SHELL=/bin/bash\nPATH=${config.security.wrapperDir}:/run/current-system/sw/bin:/usr/bin\n"
    + lib.concatLines cfg.systemCronJobs
    + lib.concatMapStrings builtins.readFile cfg.cronFiles;
in
{
  options.services.cron = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the Vixie cron daemon runs.";
    };
    mailto = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Who gets the output of jobs.";
    };
    systemCronJobs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "* * * * * root date > /tmp/now" ];
      description = "Lines of the system's crontab, with the user.";
    };
    cronFiles = mkOption {
      type = types.listOf types.path;
      default = [ ];
      description = "Files of such lines.";
    };
  };

  config = lib.mkMerge [
    { services.cron.enable = lib.mkDefault (cfg.systemCronJobs != [ ] || cfg.cronFiles != [ ]); }
    (lib.mkIf cfg.enable {
      environment.systemPackages = [ pkgs.cron ];
      users.groups.crontab = { };
      security.wrappers.crontab = {
        owner = "root";
        group = "crontab";
        setgid = true;
        source = "${pkgs.cron}/bin/crontab";
      };
      security.pam.services.cron.startSession = false;
      environment.etc.crontab = {
        text = table;
        mode = "0600";
      };
      systemd.tmpfiles.rules = [ "d /var/spool/cron/crontabs 1730 root crontab -" ];
      systemd.services.cron = {
        description = "Cron Daemon";
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ table ];
        serviceConfig = {
          ExecStart = "${pkgs.cron}/bin/cron -f";
          KillMode = "process";
          Restart = "on-failure";
        };
      };
    })
  ];
}
