# A prompt that shows the state of the project. Debian has it from trixie on.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs.starship;
  format = pkgs.formats.toml { };
  starship = lib.getExe' cfg.package "starship";
  hook = shell: on: ''
    if [ "$TERM" != dumb ]; then
      if [ ! -f "$HOME/.config/starship.toml" ]; then export STARSHIP_CONFIG=/etc/starship.toml; fi
      eval "$(${starship} init ${shell} ${on})"
    fi
  '';
in
{
  options.programs.starship = {
    enable = mkEnableOption "the Starship shell prompt";
    package = lib.mkPackageOption pkgs "starship" { };
    presets = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Presets of starship; this base takes none.";
    };
    interactiveOnly = mkOption {
      type = types.bool;
      default = true;
      description = "Whether only interactive shells have the prompt.";
    };
    transientPrompt.enable = mkEnableOption "a short prompt for lines already run, in fish";
    settings = mkOption {
      inherit (format) type;
      default = { };
      description = "What `starship.toml` says.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.presets == [ ];
        message = "the debian base takes no `programs.starship.presets'; write them as `settings'";
      }
    ];
    environment.systemPackages = [ cfg.package ];
    environment.etc."starship.toml".source = format.generate "starship.toml" cfg.settings;
    programs = {
      bash.promptInit = lib.mkAfter (hook "bash" "--print-full-init");
      zsh.promptInit = lib.mkAfter (hook "zsh" "");
      fish.promptInit = lib.mkAfter ''
        if test "$TERM" != dumb
          if not test -f "$HOME/.config/starship.toml"; set -x STARSHIP_CONFIG /etc/starship.toml; end
          ${starship} init fish | source
          ${lib.optionalString cfg.transientPrompt.enable "enable_transience"}
        end
      '';
    };
  };
}
