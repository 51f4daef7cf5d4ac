# Bash as login shell.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) lines;
  cfg = config.programs.bash;
  env = config.environment;
  aliases =
    all: lib.concatStrings (lib.mapAttrsToList (n: v: "alias -- ${n}=${lib.escapeShellArg v}\n") (lib.filterAttrs (_: v: v != null) all));
in
{
  options.programs.bash = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether bash is set up as a login shell.";
    };
    shellAliases = mkOption {
      type = types.attrsOf (types.nullOr (types.either types.str types.path));
      default = { };
      description = "Aliases of interactive bash, besides `environment.shellAliases`.";
    };
    shellInit = lines "Run by every bash that reads its start-up files.";
    loginShellInit = lines "Run by a login bash.";
    interactiveShellInit = lines "Run by an interactive bash.";
    logout = lines "Run when a login bash ends.";
    promptInit = mkOption {
      type = types.lines;
      default = ''
        if [ "''${TERM:-dumb}" != dumb ]; then
          if [ "$UID" = 0 ]; then PS1='\n\[\e[1;31m\][\u@\h:\w]\$\[\e[0m\] '; else PS1='\n\[\e[1;32m\][\u@\h:\w]\$\[\e[0m\] '; fi
        fi
      '';
      description = "Sets the prompt of an interactive bash.";
    };
    promptPluginInit = lines "Sets up what the prompt is made with.";
    completion = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether interactive bash completes arguments of commands.";
      };
      package = mkOption {
        type = types.package;
        default = pkgs.bash-completion;
        defaultText = "pkgs.bash-completion";
        description = "The package with the completions.";
      };
    };
    enableLsColors = mkOption {
      type = types.bool;
      default = true;
      description = "Whether `ls` has colours.";
    };
    blesh.enable = lib.mkEnableOption "ble.sh, which this base does not have";
    undistractMe.enable = lib.mkEnableOption "undistract-me, which this base does not have";
    vteIntegration = lib.mkEnableOption "the integration of VTE terminals, which this base does not have";
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = lib.optional cfg.completion.enable cfg.completion.package;
    environment.etc = {
      "profile".text = ''
        # Read by login shells.
        if [ -n "''${__ETC_PROFILE_DONE-}" ]; then return; fi
        __ETC_PROFILE_DONE=1
        . /etc/set-environment
        ${env.shellInit}
        ${cfg.shellInit}
        ${env.loginShellInit}
        ${cfg.loginShellInit}
        if [ -f /etc/profile.local ]; then . /etc/profile.local; fi
        if [ -n "''${BASH_VERSION-}" ]; then . /etc/bashrc; fi
      '';
      "bashrc".text = ''
        # Read by every bash that is interactive or a login shell.
        if [ -n "''${__ETC_BASHRC_SOURCED-}" ] || [ -n "''${NOSYSBASHRC-}" ]; then return; fi
        __ETC_BASHRC_SOURCED=1
        if [ -z "''${__ETC_PROFILE_DONE-}" ]; then
          . /etc/set-environment
          ${env.shellInit}
          ${cfg.shellInit}
        fi
        if [ -n "''${PS1-}" ]; then
          shopt -s checkwinsize
          ${cfg.promptPluginInit}
          ${cfg.promptInit}
          ${aliases (env.shellAliases // cfg.shellAliases)}
          ${lib.optionalString cfg.completion.enable "if [ -r /usr/share/bash-completion/bash_completion ] && shopt -q progcomp; then . /usr/share/bash-completion/bash_completion; fi"}
          ${env.interactiveShellInit}
          ${cfg.interactiveShellInit}
        fi
        if [ -f /etc/bashrc.local ]; then . /etc/bashrc.local; fi
      '';
      # Debian's bash reads this one.
      "bash.bashrc".text = ". /etc/bashrc\n";
      "bash_logout" = lib.mkIf (cfg.logout != "") { text = cfg.logout; };
    };
  };
}
