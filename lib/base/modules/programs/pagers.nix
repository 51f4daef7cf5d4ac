# Less and its settings.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.programs.less;
  entries =
    title: set:
    lib.optionalString (set != { }) (
      "#${title}\n" + lib.concatStrings (lib.mapAttrsToList (n: v: "${n} ${v}\n") set)
    );
  keys =
    (lib.optionalString cfg.clearDefaultCommands "#command\n#stop\n")
    + entries "command" cfg.commands
    + entries "line-edit" cfg.lineEditingKeys
    + lib.optionalString (cfg.envVariables != { }) (
      "#env\n" + lib.concatStrings (lib.mapAttrsToList (n: v: "${n}=${v}\n") cfg.envVariables)
    );
  texts =
    description: default:
    mkOption {
      type = types.attrsOf types.str;
      inherit default description;
    };
in
{
  options.programs.less = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether less is set up.";
    };
    package = lib.mkPackageOption pkgs "less" { };
    configFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "A lesskey file to take instead of the following.";
    };
    commands = texts "Keys of commands." { };
    clearDefaultCommands = mkOption {
      type = types.bool;
      default = false;
      description = "Whether less' own keys are forgotten.";
    };
    lineEditingKeys = texts "Keys while a line is edited." { };
    envVariables = texts "Variables for less." { LESS = "-R"; };
    lessopen = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "What less shows files through.";
    };
    lessclose = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "What is run when a file is closed.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.variables = {
      LESSKEYIN_SYSTEM =
        if cfg.configFile != null then toString cfg.configFile else "${pkgs.writeText "lessconfig" keys}";
    }
    // lib.optionalAttrs (cfg.lessopen != null) { LESSOPEN = cfg.lessopen; }
    // lib.optionalAttrs (cfg.lessclose != null) { LESSCLOSE = cfg.lessclose; };
  };
}
