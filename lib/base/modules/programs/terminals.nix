# Tmux, screen, and the monitor of processes.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines yes;
  inherit (config.programs) tmux htop screen;
  number =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
    };
  onOff = b: if b then "on" else "off";
  keyMode = lib.optionalString (
    tmux.keyMode != null
  ) "set -g status-keys ${tmux.keyMode}\nset -g mode-keys ${tmux.keyMode}\n";
  tmuxConf = ''
    set -g default-terminal "${tmux.terminal}"
    set -g base-index ${toString tmux.baseIndex}
    setw -g pane-base-index ${toString tmux.baseIndex}
    set -g history-limit ${toString tmux.historyLimit}
    ${lib.optionalString tmux.newSession "new-session"}
    ${keyMode}${
      lib.optionalString (
        tmux.keyMode == "vi" && tmux.reverseSplit
      ) "bind v split-window -h\nbind s split-window -v\n"
    }
    ${lib.optionalString (tmux.shortcut != "b") ''
      unbind C-b
      set -g prefix C-${tmux.shortcut}
      bind C-${tmux.shortcut} last-window
      bind ${tmux.shortcut} send-prefix
    ''}
    ${lib.optionalString tmux.customPaneNavigationAndResize ''
      bind h select-pane -L
      bind j select-pane -D
      bind k select-pane -U
      bind l select-pane -R
      bind -r H resize-pane -L ${toString tmux.resizeAmount}
      bind -r J resize-pane -D ${toString tmux.resizeAmount}
      bind -r K resize-pane -U ${toString tmux.resizeAmount}
      bind -r L resize-pane -R ${toString tmux.resizeAmount}
    ''}
    setw -g aggressive-resize ${onOff tmux.aggressiveResize}
    setw -g clock-mode-style ${if tmux.clock24 then "24" else "12"}
    set -s escape-time ${toString tmux.escapeTime}
    ${tmux.extraConfigBeforePlugins}
    ${lib.concatMapStrings (p: "run-shell ${if lib.isString p then p else p.rtp or p}\n") tmux.plugins}
    ${tmux.extraConfig}
  '';
  htopValue =
    v:
    if lib.isBool v then
      (if v then "1" else "0")
    else if lib.isList v then
      lib.concatMapStringsSep " " toString v
    else
      toString v;
in
{
  options.programs = {
    tmux = {
      enable = mkEnableOption "tmux, a terminal multiplexer";
      package = lib.mkPackageOption pkgs "tmux" { };
      aggressiveResize = yes false "Whether a window has the size of the smallest client that looks at it.";
      baseIndex = mkOption {
        type = types.ints.unsigned;
        default = 0;
        description = "Number of the first window and pane.";
      };
      clock24 = yes false "Whether the clock counts to 24.";
      customPaneNavigationAndResize = yes false "Whether hjkl and HJKL move between panes and resize them.";
      escapeTime = mkOption {
        type = types.ints.unsigned;
        default = 500;
        description = "Milliseconds tmux waits after an escape.";
      };
      extraConfigBeforePlugins = lines "Lines of tmux.conf before plugins.";
      extraConfig = lines "Further lines of tmux.conf.";
      historyLimit = number 2000 "Lines kept per window.";
      keyMode = mkOption {
        type = types.enum [
          "emacs"
          "vi"
        ];
        default = "emacs";
        description = "Which editor's keys it has.";
      };
      newSession = yes false "Whether a session is made when none is there.";
      reverseSplit = yes false "Whether the keys that split windows are turned around.";
      resizeAmount = number 5 "By how many lines or columns a pane is resized.";
      shortcut = mkOption {
        type = types.str;
        default = "b";
        description = "The key that, with Ctrl, begins commands.";
      };
      terminal = mkOption {
        type = types.str;
        default = "screen";
        description = "Value of `TERM`.";
      };
      secureSocket = yes true "Whether the socket lies in `/run/user`, where it ends with the session.";
      plugins = mkOption {
        type = types.listOf (types.either types.package types.str);
        default = [ ];
        description = "Plugins to run.";
      };
      withUtempter = yes true "Accepted.";
    };
    screen = {
      enable = mkEnableOption "screen, a terminal multiplexer";
      package = lib.mkPackageOption pkgs "screen" { };
      screenrc = lines "The screenrc of all users.";
    };
    htop = {
      enable = mkEnableOption "htop process monitor";
      package = lib.mkPackageOption pkgs "htop" { };
      settings = mkOption {
        type = types.attrsOf (
          types.oneOf [
            types.str
            types.int
            types.bool
            (types.listOf (
              types.oneOf [
                types.str
                types.int
                types.bool
              ]
            ))
          ]
        );
        default = { };
        example = {
          hide_kernel_threads = true;
        };
        description = "The htoprc of all users.";
      };
    };
  };

  config = lib.mkMerge [
    (lib.mkIf tmux.enable {
      environment.systemPackages = [ tmux.package ] ++ lib.filter lib.isDerivation tmux.plugins;
      environment.etc."tmux.conf".text = tmuxConf;
      environment.variables.TMUX_TMPDIR = lib.mkIf tmux.secureSocket "\${XDG_RUNTIME_DIR:-/run/user/$(id -u)}";
    })
    (lib.mkIf screen.enable {
      environment.systemPackages = [ screen.package ];
      environment.etc.screenrc.text = screen.screenrc;
    })
    (lib.mkIf htop.enable {
      environment.systemPackages = [ htop.package ];
      environment.etc.htoprc.text = lib.concatStrings (
        lib.mapAttrsToList (n: v: "${n}=${htopValue v}\n") htop.settings
      );
    })
  ];
}
