# Fish as an interactive shell.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines yes;
  cfg = config.programs.fish;
  env = config.environment;
  each =
    word: all:
    lib.concatStrings (
      lib.mapAttrsToList (n: v: "${word} ${lib.escapeShellArg n} ${lib.escapeShellArg v}\n") (
        lib.filterAttrs (_: v: v != null) all
      )
    );
  # Lines written for sh, run by it: fish takes over the variables they leave.
  fromShell = text: ''
    for entry in (${pkgs.runtimeShell} --norc --noprofile -c ${lib.escapeShellArg "${text}\n/usr/bin/env -0"} | string split0)
      set -l pair (string split -m 1 = -- $entry)
      switch $pair[1]
        case PWD OLDPWD SHLVL _ 'BASH_FUNC_*'
        case PATH
          set -gx PATH (string split : -- $pair[2])
        case '*'
          set -gx $pair[1] $pair[2]
      end
    end
  '';
in
{
  options.programs.fish = {
    enable = yes false "Whether fish is set up as an interactive shell.";
    package = lib.mkPackageOption pkgs "fish" { };
    useBabelfish = yes false "Accepted; lines for sh are run by sh.";
    generateCompletions = yes true "Accepted; completions come with the packages.";
    vendor = {
      config.enable = yes true "Accepted; fish reads what packages bring.";
      completions.enable = yes true "Accepted; fish reads what packages bring.";
      functions.enable = yes true "Accepted; fish reads what packages bring.";
    };
    shellAbbrs = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Abbreviations that are written out as they are typed.";
    };
    shellAliases = mkOption {
      type = types.attrsOf (types.nullOr (types.either types.str types.path));
      default = { };
      description = "Aliases of fish, besides `environment.shellAliases`.";
    };
    shellInit = lines "Run by every fish, in fish's language.";
    loginShellInit = lines "Run by a login fish.";
    interactiveShellInit = lines "Run by an interactive fish.";
    promptInit = lines "Sets the prompt.";
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.shells = [
      "/run/current-system/sw/bin/fish"
      "/usr/bin/fish"
      "/bin/fish"
    ];
    environment.etc."fish/config.fish".text = ''
      # Read by every fish.
      if not set -q __fish_general_config_sourced
        set -g __fish_general_config_sourced 1
        if not set -q __NIXOS_SET_ENVIRONMENT_DONE
          ${fromShell ". /etc/set-environment"}
        end
        ${lib.optionalString (env.shellInit != "") (fromShell env.shellInit)}
        ${cfg.shellInit}
      end
      if status is-login; and not set -q __fish_login_config_sourced
        set -g __fish_login_config_sourced 1
        ${lib.optionalString (env.loginShellInit != "") (fromShell env.loginShellInit)}
        ${cfg.loginShellInit}
      end
      if status is-interactive; and not set -q __fish_interactive_config_sourced
        set -g __fish_interactive_config_sourced 1
        ${each "abbr -ag" cfg.shellAbbrs}
        ${each "alias" (env.shellAliases // cfg.shellAliases)}
        ${lib.optionalString (env.interactiveShellInit != "") (fromShell env.interactiveShellInit)}
        ${cfg.promptInit}
        ${cfg.interactiveShellInit}
      end
    '';
  };
}
