# GnuPG's agent for every user.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs.gnupg;
  agent = cfg.agent;
  format = pkgs.formats.keyValue {
    mkKeyValue = lib.generators.mkKeyValueDefault { } " ";
  };
  socket = name: directory: mode: {
    description = "GnuPG's agent: ${name}";
    wantedBy = [ "sockets.target" ];
    listenStreams = [ "%t/gnupg/${directory}" ];
    socketConfig = {
      FileDescriptorName = mode;
      Service = "gpg-agent.service";
      SocketMode = "0600";
      DirectoryMode = "0700";
    };
  };
in
{
  options.programs.gnupg = {
    package = lib.mkPackageOption pkgs "gnupg" { };
    agent = {
      enable = mkEnableOption "GnuPG's agent for every user";
      enableSSHSupport = mkEnableOption "keys of GnuPG for ssh";
      enableExtraSocket = mkEnableOption "the agent's restricted socket, which is made for forwarding";
      enableBrowserSocket = mkEnableOption "the agent's socket for browsers";
      pinentryPackage = mkOption {
        type = types.nullOr types.package;
        default = pkgs.pinentry-curses;
        defaultText = lib.literalExpression "pkgs.pinentry-curses";
        description = "The package that asks for passphrases.";
      };
      settings = mkOption {
        inherit (format) type;
        default = { };
        example = {
          default-cache-ttl = 600;
        };
        description = "What gpg-agent.conf(5) says.";
      };
    };
    dirmngr.enable = mkEnableOption "GnuPG's keyserver access for every user";
  };

  config = lib.mkMerge [
    (lib.mkIf agent.enable {
      environment.systemPackages = [
        cfg.package
      ]
      ++ lib.optional (agent.pinentryPackage != null) agent.pinentryPackage;
      programs.gnupg.agent.settings = lib.mkIf (agent.pinentryPackage != null) {
        pinentry-program = lib.mkDefault (lib.getExe agent.pinentryPackage);
      };
      environment.etc."gnupg/gpg-agent.conf".source = format.generate "gpg-agent.conf" agent.settings;
      systemd.user.services.gpg-agent = {
        description = "GnuPG's agent";
        unitConfig.RefuseManualStart = true;
        serviceConfig = {
          ExecStart = "${cfg.package}/bin/gpg-agent --supervised";
          ExecReload = "${cfg.package}/bin/gpgconf --reload gpg-agent";
        };
      };
      systemd.user.sockets = {
        gpg-agent = socket "keys" "S.gpg-agent" "std";
      }
      // lib.optionalAttrs agent.enableSSHSupport {
        gpg-agent-ssh = socket "ssh" "S.gpg-agent.ssh" "ssh";
      }
      // lib.optionalAttrs agent.enableExtraSocket {
        gpg-agent-extra = socket "restricted" "S.gpg-agent.extra" "extra";
      }
      // lib.optionalAttrs agent.enableBrowserSocket {
        gpg-agent-browser = socket "browsers" "S.gpg-agent.browser" "browser";
      };
      environment.interactiveShellInit = ''
        # Where passphrases are asked for.
        export GPG_TTY=$(tty)
      '';
      environment.extraInit = lib.mkIf agent.enableSSHSupport ''
        if [ -z "$SSH_AUTH_SOCK" ] && [ -n "$XDG_RUNTIME_DIR" ]; then export SSH_AUTH_SOCK="$XDG_RUNTIME_DIR/gnupg/S.gpg-agent.ssh"; fi
      '';
      assertions = [
        {
          assertion = agent.enableSSHSupport -> !config.programs.ssh.startAgent;
          message = "`programs.ssh.startAgent' and `programs.gnupg.agent.enableSSHSupport' are two agents for one socket: choose one";
        }
      ];
    })
    (lib.mkIf cfg.dirmngr.enable {
      environment.systemPackages = [ pkgs.dirmngr ];
      systemd.user.services.dirmngr = {
        description = "GnuPG's keyserver access";
        unitConfig.RefuseManualStart = true;
        serviceConfig.ExecStart = "/usr/bin/dirmngr --supervised";
      };
      systemd.user.sockets.dirmngr = {
        description = "GnuPG's keyserver access";
        wantedBy = [ "sockets.target" ];
        listenStreams = [ "%t/gnupg/S.dirmngr" ];
        socketConfig = {
          SocketMode = "0600";
          DirectoryMode = "0700";
        };
      };
    })
  ];
}
