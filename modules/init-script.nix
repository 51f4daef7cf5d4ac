{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  user = lib.escapeShellArg cfg.user.name;
  wanted = cfg.initScript != null;
in
{
  imports = [
    ./driver.nix
    ./enable.nix
    ./user.nix
  ];

  options.codchi = {
    initScript = lib.mkOption {
      type = lib.types.nullOr lib.types.lines;
      default = null;
      example = ''
        git clone https://example.org/team/project.git ~/project
      '';
      description = ''
        Shell script run once as the machine's user when the machine is created. `codchi-init` inside runs it again.
      '';
    };
    build = {
      initScript = lib.mkOption {
        type = lib.types.nullOr lib.types.package;
        default = null;
        internal = true;
        description = "The init script as a program.";
      };
      initialised = lib.mkOption {
        type = lib.types.bool;
        default = false;
        internal = true;
        description = "Whether the init script has run on another host already, from which the files are.";
      };
    };
  };

  config = lib.mkMerge [
    (lib.mkIf (cfg.enable && wanted) {
      codchi.build.initScript = pkgs.writeShellScript "codchi-init-script" ''
        set -e
        ${cfg.initScript}
      '';
      environment.systemPackages = [
        (pkgs.writeShellScriptBin "codchi-init" ''
          if [ "$(id -un)" = ${user} ]; then
            cd
            exec ${cfg.build.initScript} "$@"
          fi
          exec sudo -i -u ${user} -- ${cfg.build.initScript} "$@"
        '')
      ];
    })
    # With a host behind it, the host runs the script and shows what it prints.
    (lib.mkIf (cfg.enable && wanted && driver.kind == "none" && !cfg.build.initialised) {
      systemd.services.codchi-init = {
        description = "First-time set-up of this machine";
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [
          "network-online.target"
          "systemd-user-sessions.service"
        ];
        unitConfig.ConditionPathExists = "!/var/lib/codchi/initialised";
        path = [ "/run/current-system/sw" ];
        serviceConfig = {
          Type = "oneshot";
          User = cfg.user.name;
          WorkingDirectory = "~";
          StateDirectory = "codchi";
          ExecStart = "${cfg.build.initScript}";
          ExecStartPost = "+${pkgs.coreutils}/bin/touch /var/lib/codchi/initialised";
        };
      };
    })
  ];
}
