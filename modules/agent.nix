# The program in the machine that carries out what the host asks: commands, log-ins, deliveries.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
in
{
  imports = [
    ./driver.nix
    ./enable.nix
    ./user.nix
  ];

  config = lib.mkIf (cfg.enable && driver.attended) {
    systemd.services.codchi-agent = {
      description = "Codchi agent";
      documentation = [ "https://github.com/codchi/codchi" ];
      wantedBy = [ "multi-user.target" ];
      environment.CODCHI_USER = cfg.user.name;
      # What runs through it would end with it.
      restartIfChanged = false;
      # However often it ends, it is what lets anybody in.
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = {
        # A machine that is up can be entered.
        Type = "notify";
        ExecStart =
          "/run/codchi/bin/codchi-agent" + lib.optionalString (driver.kind == "vm") " --port codchi.agent";
        Restart = "always";
        RestartSec = "200ms";
        # Commands get cgroups of their own below the unit's, and outlive a restarted agent.
        Delegate = true;
        KillMode = "process";
        OOMPolicy = "continue";
        TasksMax = "infinity";
      };
    };
  };
}
