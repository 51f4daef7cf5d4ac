# The SSH client of everyone on the machine, and the agent.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) yes;
  cfg = config.programs.ssh;

  algorithms =
    description:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      inherit description;
    };
  algorithmsOrNone =
    description:
    mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      inherit description;
    };

  host =
    { name, config, ... }:
    {
      options = {
        certAuthority = yes false "Whether the key is that of an authority which signs the keys of the hosts.";
        hostNames = mkOption {
          type = types.listOf types.str;
          default = [ name ] ++ config.extraHostNames;
          defaultText = lib.literalExpression "[ name ] ++ extraHostNames";
          description = "Names and addresses of the host.";
        };
        extraHostNames = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Names besides the attribute's.";
        };
        publicKey = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "The host's public key.";
        };
        publicKeyFile = mkOption {
          type = types.nullOr types.path;
          default = null;
          description = "A file with the host's public key.";
        };
      };
    };

  knownHosts = lib.attrValues cfg.knownHosts;
  knownHostsText = lib.concatMapStrings (
    h:
    assert lib.assertMsg (h.hostNames != [ ]) "programs.ssh.knownHosts: an entry names no host";
    "${lib.optionalString h.certAuthority "@cert-authority "}${lib.concatStringsSep "," h.hostNames} ${
      if h.publicKey != null then h.publicKey else lib.fileContents h.publicKeyFile
    }\n"
  ) knownHosts;

  list =
    name: values:
    lib.optionalString (values != [ ] && values != null) "${name} ${lib.concatStringsSep "," values}\n";
in
{
  options.programs.ssh = {
    enableAskPassword = mkOption {
      type = types.bool;
      default = false;
      description = "Whether a graphical program asks for passwords.";
    };
    askPassword = mkOption {
      type = types.str;
      default = "";
      description = "The program that asks for passwords.";
    };
    forwardX11 = mkOption {
      type = types.nullOr types.bool;
      default = false;
      description = "Whether X11 is forwarded; null: ssh's own default.";
    };
    setXAuthLocation = mkOption {
      type = types.bool;
      default = false;
      description = "Whether ssh is told where xauth is; Debian's finds it by itself.";
    };
    pubkeyAcceptedKeyTypes = algorithms "Kinds of keys used to log in.";
    hostKeyAlgorithms = algorithms "Kinds of host keys that are accepted.";
    kexAlgorithms = algorithmsOrNone "Key exchange algorithms, the preferred first.";
    ciphers = algorithmsOrNone "Ciphers, the preferred first.";
    macs = algorithmsOrNone "Message authentication codes, the preferred first.";
    extraConfig = mkOption {
      type = types.lines;
      default = "";
      description = "Lines of ssh_config(5), before all others.";
    };
    startAgent = yes false "Whether every user has an agent that keeps keys.";
    agentTimeout = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "1h";
      description = "How long the agent keeps a key.";
    };
    agentPKCS11Whitelist = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "PKCS#11 libraries the agent may load.";
    };
    package = mkOption {
      type = types.package;
      default = pkgs.openssh-client;
      defaultText = lib.literalExpression "pkgs.openssh-client";
      description = "The package with ssh.";
    };
    knownHosts = mkOption {
      default = { };
      type = types.attrsOf (types.submodule host);
      description = "Keys of hosts, by name.";
    };
    knownHostsFiles = mkOption {
      type = types.listOf types.path;
      default = [ ];
      description = "Further files of known hosts.";
    };
    systemd-ssh-proxy.enable = yes true "Accepted; systemd's proxy to machines of its own is not set up.";
  };

  config = {
    assertions = lib.flip lib.mapAttrsToList cfg.knownHosts (
      name: h: {
        assertion = (h.publicKey == null) != (h.publicKeyFile == null);
        message = "`programs.ssh.knownHosts.${name}' needs one of `publicKey' and `publicKeyFile'";
      }
    );

    environment.systemPackages = [ cfg.package ];
    environment.etc."ssh/ssh_config".text = ''
      ${cfg.extraConfig}
      Host *
      ${
        lib.optionalString (cfg.forwardX11 != null) "ForwardX11 ${lib.boolToYesNo cfg.forwardX11}\n"
      }GlobalKnownHostsFile ${
        lib.concatStringsSep " " ([ "/etc/ssh/ssh_known_hosts" ] ++ map toString cfg.knownHostsFiles)
      }
      ${list "PubkeyAcceptedAlgorithms" cfg.pubkeyAcceptedKeyTypes}${list "HostKeyAlgorithms" cfg.hostKeyAlgorithms}${list "KexAlgorithms" cfg.kexAlgorithms}${list "Ciphers" cfg.ciphers}${list "MACs" cfg.macs}
    '';
    environment.etc."ssh/ssh_known_hosts".text = knownHostsText;

    systemd.user.services.ssh-agent = lib.mkIf cfg.startAgent {
      description = "SSH Agent";
      wantedBy = [ "default.target" ];
      unitConfig.ConditionUser = "!@system";
      serviceConfig = {
        ExecStartPre = "/usr/bin/rm -f %t/ssh-agent";
        ExecStart =
          "${cfg.package}/bin/ssh-agent"
          + lib.optionalString (cfg.agentTimeout != null) " -t ${cfg.agentTimeout}"
          + lib.optionalString (cfg.agentPKCS11Whitelist != null) " -P ${cfg.agentPKCS11Whitelist}"
          + " -a %t/ssh-agent";
        StandardOutput = "null";
        Type = "forking";
        Restart = "on-failure";
        SuccessExitStatus = "0 2";
      };
      environment.SSH_ASKPASS = lib.optionalString cfg.enableAskPassword cfg.askPassword;
    };
    environment.extraInit = lib.optionalString cfg.startAgent ''
      if [ -z "$SSH_AUTH_SOCK" ] && [ -n "$XDG_RUNTIME_DIR" ]; then export SSH_AUTH_SOCK="$XDG_RUNTIME_DIR/ssh-agent"; fi
    '';
    environment.variables = lib.mkIf cfg.enableAskPassword { SSH_ASKPASS = cfg.askPassword; };
  };
}
