# PAM: the common stacks that Debian's services include, and stacks that modules name.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) yes;
  cfg = config.security.pam;

  session = ''
    session required pam_unix.so
    session required pam_env.so conffile=/etc/pam/environment readenv=0
    session optional pam_systemd.so
  '';

  service =
    { name, config, ... }:
    {
      options = {
        enable = yes true "Whether the stack is there.";
        name = mkOption {
          type = types.str;
          default = name;
          description = "Name of the service.";
        };
        text = mkOption {
          type = types.nullOr types.lines;
          description = "The stack.";
        };
        unixAuth = yes true "Whether passwords count.";
        rootOK = yes false "Whether root needs none.";
        allowNullPassword = yes false "Whether an empty password counts.";
        startSession = yes false "Whether the session is known to logind.";
        setEnvironment = yes true "Whether session variables are set.";
        setLoginUid = yes false "Accepted; a container has no audit.";
        showMotd = yes false "Whether the message of the day is shown.";
        makeHomeDir = yes false "Whether a missing home is made.";
        updateWtmp = yes false "Accepted.";
        limits = mkOption {
          type = types.listOf types.raw;
          default = cfg.loginLimits;
          description = "Limits of its sessions.";
        };
        failDelay = mkOption {
          type = types.lazyAttrsOf types.anything;
          default = { };
          description = "Accepted.";
        };
        rules = mkOption {
          type = types.lazyAttrsOf types.anything;
          default = { };
          description = "Accepted; write `text' instead.";
        };
        sshAgentAuth = yes false "Accepted.";
        u2fAuth = yes false "Accepted.";
        fprintAuth = yes false "Accepted.";
        gnupg = mkOption {
          type = types.lazyAttrsOf types.anything;
          default = { };
          description = "Accepted.";
        };
        enableGnomeKeyring = yes false "Whether the login keyring is unlocked.";
      };
      config.text = lib.mkDefault (
        lib.optionalString config.rootOK "auth sufficient pam_rootok.so\n"
        + lib.optionalString config.unixAuth "auth sufficient pam_unix.so ${lib.optionalString config.allowNullPassword "nullok"} try_first_pass\n"
        + lib.optionalString config.enableGnomeKeyring "auth optional pam_gnome_keyring.so\n"
        + "auth required pam_deny.so\n"
        + "account required pam_unix.so\n"
        + "password sufficient pam_unix.so nullok yescrypt\n"
        + "session required pam_unix.so\n"
        + lib.optionalString config.setEnvironment "session required pam_env.so conffile=/etc/pam/environment readenv=0\n"
        + lib.optionalString config.makeHomeDir "session required pam_mkhomedir.so\n"
        + lib.optionalString config.startSession "session optional pam_systemd.so\n"
        + lib.optionalString (config.limits != [ ]) "session required pam_limits.so\n"
        + lib.optionalString config.showMotd "session optional pam_motd.so motd=/etc/motd\n"
        + lib.optionalString config.enableGnomeKeyring "session optional pam_gnome_keyring.so auto_start\n"
      );
    };
in
{
  options.security.pam = {
    services = mkOption {
      default = { };
      type = types.attrsOf (types.submodule service);
      description = "Stacks by name of the service.";
    };
    loginLimits = mkOption {
      default = [ ];
      description = "Limits of sessions, as limits.conf(5).";
      type = types.listOf (
        types.submodule {
          options = {
            domain = mkOption {
              type = types.str;
              description = "Whom the limit is for.";
            };
            type = mkOption {
              type = types.enum [
                "-"
                "hard"
                "soft"
              ];
              default = "-";
              description = "Kind of limit.";
            };
            item = mkOption {
              type = types.str;
              description = "What is limited.";
            };
            value = mkOption {
              type = types.oneOf [
                types.str
                types.int
              ];
              description = "To what.";
            };
          };
        }
      );
    };
    makeHomeDir.skelDirectory = mkOption {
      type = types.str;
      default = "/var/empty";
      description = "What a made home starts with.";
    };
    enableSSHAgentAuth = yes false "Accepted.";
    sshAgentAuth.enable = yes false "Accepted.";
    u2f.enable = yes false "Accepted.";
  };

  config = {
    security.pam.services = {
      login = {
        startSession = lib.mkDefault true;
        allowNullPassword = lib.mkDefault true;
        showMotd = lib.mkDefault true;
      };
      su.rootOK = lib.mkDefault true;
      su-l = {
        rootOK = lib.mkDefault true;
        startSession = lib.mkDefault true;
      };
      sudo = { };
      sudo-i = { };
      passwd = { };
      chsh.rootOK = lib.mkDefault true;
      chfn.rootOK = lib.mkDefault true;
      runuser = {
        rootOK = lib.mkDefault true;
        unixAuth = lib.mkDefault false;
      };
      runuser-l = {
        rootOK = lib.mkDefault true;
        unixAuth = lib.mkDefault false;
      };
      systemd-user = {
        startSession = lib.mkDefault true;
      };
    };
    environment.etc = {
      "pam.d/common-auth".text = "auth sufficient pam_unix.so nullok\nauth required pam_deny.so\n";
      "pam.d/common-account".text = "account required pam_unix.so\n";
      "pam.d/common-password".text = "password sufficient pam_unix.so nullok yescrypt\npassword required pam_deny.so\n";
      "pam.d/common-session".text = session;
      "pam.d/common-session-noninteractive".text = "session required pam_unix.so\nsession required pam_env.so conffile=/etc/pam/environment readenv=0\n";
      "pam.d/other".text = ''
        auth required pam_deny.so
        account required pam_deny.so
        password required pam_deny.so
        session required pam_deny.so
      '';
      "environment".text = "";
      "login.defs".text = ''
        DEFAULT_HOME yes
        SYS_UID_MIN 400
        SYS_UID_MAX 999
        UID_MIN 1000
        UID_MAX 29999
        SYS_GID_MIN 400
        SYS_GID_MAX 999
        GID_MIN 1000
        GID_MAX 29999
        SUB_UID_MIN 100000
        SUB_UID_COUNT 65536
        SUB_GID_MIN 100000
        SUB_GID_COUNT 65536
        TTYGROUP tty
        TTYPERM 0620
        UMASK 077
        ENCRYPT_METHOD YESCRYPT
        CHFN_RESTRICT rwh
      '';
    }
    // lib.mapAttrs' (_: s: lib.nameValuePair "pam.d/${s.name}" { inherit (s) text; }) (
      lib.filterAttrs (_: s: s.enable) cfg.services
    )
    // lib.optionalAttrs (cfg.loginLimits != [ ]) {
      "security/limits.conf".text = lib.concatMapStrings (
        l: "${l.domain} ${l.type} ${l.item} ${toString l.value}\n"
      ) cfg.loginLimits;
    };
  };
}
