# The SSH server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../options.nix { inherit lib; }) yes;
  cfg = config.services.openssh;
  names =
    description:
    mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      inherit description;
    };

  # How sshd_config writes a value: lists with blanks, those of algorithms with commas.
  commas = [
    "Ciphers"
    "HostKeyAlgorithms"
    "KexAlgorithms"
    "Macs"
    "MACs"
    "PubkeyAcceptedAlgorithms"
    "CASignatureAlgorithms"
  ];
  render =
    key: value:
    if value == null then
      ""
    else if lib.isBool value then
      "${key} ${lib.boolToYesNo value}\n"
    else if lib.isList value then
      lib.optionalString (value != [ ])
        "${key} ${lib.concatStringsSep (if lib.elem key commas then "," else " ") value}\n"
    else
      "${key} ${toString value}\n";

  keyFiles = map (k: k.path) cfg.hostKeys;
  sshdConfig = pkgs.writeText "sshd_config" (
    lib.concatMapStrings (p: "Port ${toString p}\n") cfg.ports
    + lib.concatMapStrings (
      { addr, port, ... }:
      "ListenAddress ${addr}${lib.optionalString (port != null) ":${toString port}"}\n"
    ) cfg.listenAddresses
    + "AddressFamily ${if config.networking.enableIPv6 or true then "any" else "inet"}\n"
    + lib.optionalString (cfg.banner != null) "Banner ${pkgs.writeText "ssh_banner" cfg.banner}\n"
    + lib.optionalString cfg.allowSFTP "Subsystem sftp ${cfg.sftpServerExecutable} ${lib.concatStringsSep " " cfg.sftpFlags}\n"
    + "AuthorizedKeysFile ${toString cfg.authorizedKeysFiles}\n"
    +
      lib.optionalString (cfg.authorizedKeysCommand != "none")
        "AuthorizedKeysCommand ${cfg.authorizedKeysCommand}\nAuthorizedKeysCommandUser ${cfg.authorizedKeysCommandUser}\n"
    + lib.concatMapStrings (k: "HostKey ${k}\n") keyFiles
    + lib.concatStrings (lib.mapAttrsToList render cfg.settings)
    + cfg.extraConfig
  );
in
{
  imports = [
    (lib.mkRenamedOptionModule
      [ "services" "openssh" "permitRootLogin" ]
      [ "services" "openssh" "settings" "PermitRootLogin" ]
    )
    (lib.mkRenamedOptionModule
      [ "services" "openssh" "passwordAuthentication" ]
      [ "services" "openssh" "settings" "PasswordAuthentication" ]
    )
    (lib.mkRenamedOptionModule
      [ "services" "openssh" "forwardX11" ]
      [ "services" "openssh" "settings" "X11Forwarding" ]
    )
    (lib.mkRenamedOptionModule
      [ "services" "openssh" "gatewayPorts" ]
      [ "services" "openssh" "settings" "GatewayPorts" ]
    )
  ];

  options.services.openssh = {
    enable = yes false "Whether people may log in by SSH.";
    package = mkOption {
      type = types.package;
      default = pkgs.openssh;
      defaultText = lib.literalExpression "pkgs.openssh";
      description = "The package with sshd.";
    };
    startWhenNeeded = yes false "Whether sshd starts with the first connection.";
    allowSFTP = yes true "Whether files may be transferred by sftp.";
    sftpServerExecutable = mkOption {
      type = types.str;
      default = "internal-sftp";
      description = "The sftp server.";
    };
    sftpFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Arguments of the sftp server.";
    };
    ports = mkOption {
      type = types.listOf types.port;
      default = [ 22 ];
      description = "Ports it listens on.";
    };
    openFirewall = yes true "Whether the ports are open in the firewall.";
    listenAddresses = mkOption {
      default = [ ];
      description = "Addresses it listens on; none: all.";
      type = types.listOf (
        types.submodule {
          options = {
            addr = mkOption {
              type = types.nullOr types.str;
              default = null;
              description = "Address or host name.";
            };
            port = mkOption {
              type = types.nullOr types.int;
              default = null;
              description = "Port; none: those of `ports`.";
            };
          };
        }
      );
    };
    hostKeys = mkOption {
      type = types.listOf types.attrs;
      default = [
        {
          type = "rsa";
          bits = 4096;
          path = "/etc/ssh/ssh_host_rsa_key";
        }
        {
          type = "ed25519";
          path = "/etc/ssh/ssh_host_ed25519_key";
        }
      ];
      description = "Keys of the host, made where they are missing.";
    };
    generateHostKeys = yes true "Whether missing keys of the host are made.";
    banner = mkOption {
      type = types.nullOr types.lines;
      default = null;
      description = "Text shown before people log in.";
    };
    authorizedKeysFiles = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Files of keys that may log in.";
    };
    authorizedKeysInHomedir = yes true "Whether `~/.ssh/authorized_keys` counts.";
    authorizedKeysCommand = mkOption {
      type = types.str;
      default = "none";
      description = "A program that tells the keys of a user.";
    };
    authorizedKeysCommandUser = mkOption {
      type = types.str;
      default = "nobody";
      description = "As whom that program runs.";
    };
    moduliFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "Moduli of the key exchange; none: Debian's.";
    };
    extraConfig = mkOption {
      type = types.lines;
      default = "";
      description = "Further lines of sshd_config(5), at its end.";
    };
    settings = mkOption {
      default = { };
      description = "Settings of sshd_config(5).";
      type = types.submodule {
        freeformType = types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.str
              types.bool
              types.int
              (types.listOf types.str)
            ]
          )
        );
        options = {
          PasswordAuthentication = yes true "Whether passwords count.";
          KbdInteractiveAuthentication = yes true "Whether passwords are asked for interactively.";
          PermitRootLogin = mkOption {
            type = types.enum [
              "yes"
              "without-password"
              "prohibit-password"
              "forced-commands-only"
              "no"
            ];
            default = "prohibit-password";
            description = "Whether root may log in.";
          };
          X11Forwarding = yes false "Whether X11 is forwarded.";
          PrintMotd = yes false "Whether sshd itself shows the message of the day.";
          UseDns = yes false "Whether names of clients are looked up.";
          UsePAM = yes true "Whether PAM is asked.";
          StrictModes = yes true "Whether files others may write are refused.";
          GatewayPorts = mkOption {
            type = types.str;
            default = "no";
            description = "Whether others may connect to forwarded ports.";
          };
          LogLevel = mkOption {
            type = types.enum [
              "QUIET"
              "FATAL"
              "ERROR"
              "INFO"
              "VERBOSE"
              "DEBUG"
              "DEBUG1"
              "DEBUG2"
              "DEBUG3"
            ];
            default = "INFO";
            description = "How much is logged.";
          };
          AllowUsers = names "Who may log in; none: all.";
          DenyUsers = names "Who may not.";
          AllowGroups = names "Whose groups may log in; none: all.";
          DenyGroups = names "Whose groups may not.";
          Ciphers = names "Ciphers; none: sshd's own.";
          KexAlgorithms = names "Key exchanges; none: sshd's own.";
          Macs = names "Authentication codes; none: sshd's own.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion =
          cfg.startWhenNeeded
          -> cfg.listenAddresses == [ ] || lib.all (a: a.addr != null) cfg.listenAddresses;
        message = "`services.openssh.listenAddresses': each needs an `addr'";
      }
    ];
    users.users.sshd = {
      isSystemUser = true;
      group = "sshd";
      description = "SSH privilege separation user";
    };
    users.groups.sshd = { };

    services.openssh.authorizedKeysFiles =
      lib.optional cfg.authorizedKeysInHomedir "%h/.ssh/authorized_keys"
      ++ [
        "/etc/ssh/authorized_keys.d/%u"
      ];
    environment.etc."ssh/sshd_config".source = sshdConfig;
    environment.etc."ssh/moduli" = lib.mkIf (cfg.moduliFile != null) { source = cfg.moduliFile; };
    security.pam.services.sshd = {
      startSession = true;
      showMotd = true;
      unixAuth = cfg.settings.PasswordAuthentication == true;
    };
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall cfg.ports;

    systemd.tmpfiles.rules = [ "d /run/sshd 0755 root root -" ];
    systemd.services =
      let
        service = {
          description = "SSH Daemon";
          after = [
            "network.target"
            "sshd-keygen.service"
          ];
          wants = [ "sshd-keygen.service" ];
          stopIfChanged = false;
          path = [ cfg.package ];
          restartTriggers = [ sshdConfig ];
          serviceConfig = {
            ExecStart =
              (lib.optionalString cfg.startWhenNeeded "-")
              + "${cfg.package}/bin/sshd "
              + (if cfg.startWhenNeeded then "-i " else "-D ")
              + "-f /etc/ssh/sshd_config";
            KillMode = "process";
            RuntimeDirectory = if cfg.startWhenNeeded then null else "sshd";
            RuntimeDirectoryMode = "0755";
            RuntimeDirectoryPreserve = true;
          }
          // (
            if cfg.startWhenNeeded then
              {
                StandardInput = "socket";
                StandardError = "journal";
              }
            else
              {
                Type = "notify";
                Restart = "always";
              }
          );
        };
      in
      {
        sshd-keygen = lib.mkIf cfg.generateHostKeys {
          description = "SSH Host Keys Generation";
          unitConfig.ConditionFileNotEmpty = map (k: "|!${k.path}") cfg.hostKeys;
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
          };
          path = [ cfg.package ];
          script = lib.concatMapStrings (k: ''
            if [ ! -s ${lib.escapeShellArg k.path} ]; then
              if [ ! -h ${lib.escapeShellArg k.path} ]; then rm -f ${lib.escapeShellArg k.path}; fi
              mkdir -p "$(dirname ${lib.escapeShellArg k.path})"
              ssh-keygen -t ${lib.escapeShellArg k.type} ${
                lib.optionalString (k ? bits) "-b ${toString k.bits}"
              } ${lib.optionalString (k ? rounds) "-a ${toString k.rounds}"} ${
                lib.optionalString (k ? comment) "-C ${lib.escapeShellArg k.comment}"
              } -f ${lib.escapeShellArg k.path} -N ""
            fi
          '') cfg.hostKeys;
        };
      }
      // (
        if cfg.startWhenNeeded then
          { "sshd@" = service; }
        else
          {
            sshd = service // {
              wantedBy = [ "multi-user.target" ];
            };
          }
      );
    systemd.sockets.sshd = lib.mkIf cfg.startWhenNeeded {
      description = "SSH Socket";
      wantedBy = [ "sockets.target" ];
      listenStreams =
        if cfg.listenAddresses != [ ] then
          lib.concatMap (
            { addr, port, ... }: map (p: "${addr}:${toString p}") (if port != null then [ port ] else cfg.ports)
          ) cfg.listenAddresses
        else
          map toString cfg.ports;
      socketConfig.Accept = true;
    };
  };
}
