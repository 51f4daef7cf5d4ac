# Zsh as an interactive shell. Debian's zsh reads /etc/zsh; the files themselves are where NixOS has them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines yes;
  cfg = config.programs.zsh;
  env = config.environment;

  aliases =
    all:
    lib.concatStrings (
      lib.mapAttrsToList (n: v: "alias -- ${n}=${lib.escapeShellArg v}\n") (
        lib.filterAttrs (_: v: v != null) all
      )
    );
  files = [
    "zshenv"
    "zprofile"
    "zshrc"
    "zinputrc"
  ];
in
{
  options.programs.zsh = {
    enable = yes false "Whether zsh is set up as an interactive shell.";
    shellAliases = mkOption {
      type = types.attrsOf (types.nullOr (types.either types.str types.path));
      default = { };
      description = "Aliases of zsh, besides `environment.shellAliases`.";
    };
    shellInit = lines "Run by every zsh.";
    loginShellInit = lines "Run by a login zsh.";
    interactiveShellInit = lines "Run by an interactive zsh.";
    promptInit = mkOption {
      type = types.lines;
      default = ''
        # A prompt with colours, where it is possible.
        if [ "$TERM" != dumb ]; then autoload -U promptinit && promptinit && prompt suse && setopt prompt_sp; fi
      '';
      description = "Sets the prompt.";
    };
    histSize = mkOption {
      type = types.int;
      default = 2000;
      description = "Lines of history.";
    };
    histFile = mkOption {
      type = types.str;
      default = "$HOME/.zsh_history";
      description = "File of the history.";
    };
    setOptions = mkOption {
      type = types.listOf types.str;
      default = [
        "HIST_IGNORE_DUPS"
        "SHARE_HISTORY"
        "HIST_FCNTL_LOCK"
      ];
      description = "Options of zsh; see zshoptions(1).";
    };
    vteIntegration = yes false "Accepted; there is no terminal of VTE here.";
    enableCompletion = yes true "Whether arguments are completed.";
    enableBashCompletion = yes false "Whether completions of bash work too.";
    enableGlobalCompInit =
      yes cfg.enableCompletion "Whether completion is initialised for all users."
      // {
        defaultText = lib.literalExpression "config.programs.zsh.enableCompletion";
      };
    enableLsColors = yes true "Whether `ls` has colours.";
    autosuggestions = {
      enable = yes false "Whether zsh-autosuggestions suggests what to write.";
      highlightStyle = mkOption {
        type = types.str;
        default = "fg=8";
        description = "How suggestions look.";
      };
      strategy = mkOption {
        type = types.listOf (
          types.enum [
            "history"
            "completion"
            "match_prev_cmd"
          ]
        );
        default = [ "history" ];
        description = "Where suggestions come from.";
      };
      extraConfig = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Further variables of zsh-autosuggestions.";
      };
      async = yes true "Whether suggestions are fetched beside the typing.";
    };
    syntaxHighlighting = {
      enable = yes false "Whether what is typed is coloured.";
      highlighters = mkOption {
        type = types.listOf (
          types.enum [
            "main"
            "brackets"
            "pattern"
            "cursor"
            "regexp"
            "root"
            "line"
          ]
        );
        default = [ "main" ];
        description = "Which highlighters are on.";
      };
      patterns = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Patterns of the highlighter `pattern`, with their looks.";
      };
      styles = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Looks of the highlighters.";
      };
    };
    ohMyZsh.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether oh-my-zsh is used. Debian has no such package.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !cfg.ohMyZsh.enable;
        message = "the debian base has no package `oh-my-zsh', which `programs.zsh.ohMyZsh' needs";
      }
    ];
    environment.systemPackages = [
      pkgs.zsh
    ]
    ++ lib.optional cfg.autosuggestions.enable pkgs.zsh-autosuggestions
    ++ lib.optional cfg.syntaxHighlighting.enable pkgs.zsh-syntax-highlighting;
    environment.pathsToLink = [ "/share/zsh" ];
    environment.shells = [
      "/run/current-system/sw/bin/zsh"
      "/usr/bin/zsh"
      "/bin/zsh"
    ];

    environment.etc = {
      zshenv.text = ''
        # Read by every zsh.
        if [ -n "''${__ETC_ZSHENV_SOURCED-}" ]; then return; fi
        __ETC_ZSHENV_SOURCED=1
        if [ -z "''${__NIXOS_SET_ENVIRONMENT_DONE-}" ]; then . /etc/set-environment; fi
        HELPDIR=/usr/share/zsh/help
        for p in ''${(z)NIX_PROFILES-}; do
          fpath=($p/share/zsh/site-functions $p/share/zsh/vendor-completions $fpath)
        done
        unset p
        ${env.shellInit}
        ${cfg.shellInit}
        if [ -f /etc/zshenv.local ]; then . /etc/zshenv.local; fi
      '';
      zprofile.text = ''
        # Read by a login zsh.
        if [ -n "''${__ETC_ZPROFILE_SOURCED-}" ]; then return; fi
        __ETC_ZPROFILE_SOURCED=1
        ${env.loginShellInit}
        ${cfg.loginShellInit}
        if [ -f /etc/zprofile.local ]; then . /etc/zprofile.local; fi
      '';
      zshrc.text = ''
        # Read by an interactive zsh.
        if [ -n "''${__ETC_ZSHRC_SOURCED-}" ] || [ -n "''${NOSYSZSHRC-}" ]; then return; fi
        __ETC_ZSHRC_SOURCED=1
        ${lib.optionalString (cfg.setOptions != [ ]) "setopt ${lib.concatStringsSep " " cfg.setOptions}"}
        HISTSIZE=${toString cfg.histSize} SAVEHIST=${toString cfg.histSize} HISTFILE=${cfg.histFile}
        if [ -f /etc/zinputrc ]; then . /etc/zinputrc; fi
        ${lib.optionalString cfg.enableGlobalCompInit "autoload -U compinit && compinit -u"}
        ${lib.optionalString cfg.enableBashCompletion "autoload -U bashcompinit && bashcompinit"}
        ${lib.optionalString cfg.enableLsColors ''eval "$(dircolors -b)"''}
        ${env.interactiveShellInit}
        ${lib.optionalString cfg.autosuggestions.enable ''
          . ${pkgs.zsh-autosuggestions}/share/zsh-autosuggestions/zsh-autosuggestions.zsh
          ZSH_AUTOSUGGEST_HIGHLIGHT_STYLE=${lib.escapeShellArg cfg.autosuggestions.highlightStyle}
          ZSH_AUTOSUGGEST_STRATEGY=(${lib.concatStringsSep " " cfg.autosuggestions.strategy})
          ${lib.optionalString (!cfg.autosuggestions.async) "unset ZSH_AUTOSUGGEST_USE_ASYNC"}
          ${lib.concatStrings (
            lib.mapAttrsToList (n: v: "${n}=${lib.escapeShellArg v}\n") cfg.autosuggestions.extraConfig
          )}
        ''}
        ${cfg.interactiveShellInit}
        ${lib.optionalString cfg.syntaxHighlighting.enable ''
          . ${pkgs.zsh-syntax-highlighting}/share/zsh-syntax-highlighting/zsh-syntax-highlighting.zsh
          ZSH_HIGHLIGHT_HIGHLIGHTERS=(${lib.concatStringsSep " " cfg.syntaxHighlighting.highlighters})
          ${lib.concatStrings (
            lib.mapAttrsToList (
              n: v: "ZSH_HIGHLIGHT_PATTERNS+=(${lib.escapeShellArg n} ${lib.escapeShellArg v})\n"
            ) cfg.syntaxHighlighting.patterns
          )}
          ${lib.concatStrings (
            lib.mapAttrsToList (
              n: v: "ZSH_HIGHLIGHT_STYLES[${n}]=${lib.escapeShellArg v}\n"
            ) cfg.syntaxHighlighting.styles
          )}
        ''}
        ${aliases (env.shellAliases // cfg.shellAliases)}
        ${cfg.promptInit}
        if [ -f /etc/zshrc.local ]; then . /etc/zshrc.local; fi
      '';
      zinputrc.text = ''
        # Keys of common terminals.
        bindkey -e
        bindkey '^[[H' beginning-of-line
        bindkey '^[[F' end-of-line
        bindkey '^[[3~' delete-char
        bindkey '^[[1;5C' forward-word
        bindkey '^[[1;5D' backward-word
      '';
    }
    // lib.genAttrs' files (name: lib.nameValuePair "zsh/${name}" { text = ". /etc/${name}\n"; });
  };
}
