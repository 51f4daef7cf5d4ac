# Environments that come and go with the folder.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs.direnv;
  integration =
    shell:
    mkEnableOption "the hook of ${shell}"
    // {
      default = true;
      example = false;
    };
  format = pkgs.formats.toml { };
  direnv = lib.getExe' cfg.package "direnv";
in
{
  options.programs.direnv = {
    enable = mkEnableOption "direnv, which loads the environment of the folder one is in";
    package = lib.mkPackageOption pkgs "direnv" { };
    finalPackage = mkOption {
      type = types.package;
      readOnly = true;
      default = cfg.package;
      defaultText = lib.literalExpression "config.programs.direnv.package";
      description = "The package that is used.";
    };
    enableBashIntegration = integration "bash";
    enableZshIntegration = integration "zsh";
    enableFishIntegration = integration "fish";
    enableXonshIntegration = integration "xonsh";
    direnvrcExtra = mkOption {
      type = types.lines;
      default = "";
      description = "Further lines of the direnvrc of all users.";
    };
    silent = mkEnableOption "hiding what direnv logs";
    loadInNixShell = mkEnableOption "direnv inside of nix-shell and nix shell" // {
      default = true;
    };
    nix-direnv = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Whether nix-direnv keeps Nix environments. Debian has no such package; direnv's own `use nix` and `use flake` work without.";
      };
      package = lib.mkPackageOption pkgs "nix-direnv" { };
    };
    settings = mkOption {
      inherit (format) type;
      default = { };
      description = "Settings, as direnv.toml(1).";
    };
  };

  config = lib.mkIf cfg.enable {
    programs = {
      bash.interactiveShellInit = lib.mkIf cfg.enableBashIntegration (
        lib.mkAfter ''eval "$(${direnv} hook bash)"''
      );
      zsh.interactiveShellInit = lib.mkIf cfg.enableZshIntegration (
        lib.mkAfter ''eval "$(${direnv} hook zsh)"''
      );
      fish.interactiveShellInit = lib.mkIf cfg.enableFishIntegration (
        lib.mkAfter "${direnv} hook fish | source"
      );
      direnv.settings = lib.mkIf cfg.silent {
        global = {
          log_format = lib.mkDefault "-";
          log_filter = lib.mkDefault "^$";
        };
      };
    };
    environment = {
      systemPackages = [ cfg.package ];
      # Where there is no file of the person's own, direnv reads the machine's.
      variables.DIRENV_CONFIG = "/etc/direnv";
      etc = {
        "direnv/direnv.toml" = lib.mkIf (cfg.settings != { }) {
          source = format.generate "direnv.toml" cfg.settings;
        };
        "direnv/direnvrc".text = ''
          ${cfg.direnvrcExtra}
          ${lib.optionalString cfg.nix-direnv.enable "source ${cfg.nix-direnv.package}/share/nix-direnv/direnvrc"}
          # A person's own files count as they would without this folder.
          own="''${XDG_CONFIG_HOME:-$HOME/.config}/direnv"
          if [ -f "$own/direnvrc" ]; then source "$own/direnvrc"; fi
          for file in "$own"/lib/*.sh; do if [ -f "$file" ]; then source "$file"; fi; done
          unset own file
        '';
      };
    };
  };
}
