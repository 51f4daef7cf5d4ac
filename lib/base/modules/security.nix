# Setuid programs, sudo, certificates.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.security;

  wrapper =
    { name, ... }:
    {
      options = {
        enable = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the wrapper is there.";
        };
        source = mkOption {
          type = types.path;
          description = "The program.";
        };
        program = mkOption {
          type = types.str;
          default = name;
          description = "Name of the wrapper.";
        };
        owner = mkOption {
          type = types.str;
          description = "Its owner.";
        };
        group = mkOption {
          type = types.str;
          description = "Its group.";
        };
        setuid = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it runs as its owner.";
        };
        setgid = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it runs as its group.";
        };
        permissions = mkOption {
          type = types.str;
          default = "u+rx,g+x,o+x";
          description = "Who may run it, as chmod's symbolic modes.";
        };
        capabilities = mkOption {
          type = types.commas;
          default = "";
          description = "Capabilities it has, as cap_from_text(3).";
        };
      };
    };

  root = source: {
    setuid = lib.mkDefault true;
    owner = lib.mkDefault "root";
    group = lib.mkDefault "root";
    source = lib.mkDefault source;
  };

  rule = types.submodule {
    options = {
      users = mkOption {
        type = types.listOf (types.either types.str types.int);
        default = [ ];
        description = "Whom the rule is for.";
      };
      groups = mkOption {
        type = types.listOf (types.either types.str types.int);
        default = [ ];
        description = "Groups the rule is for.";
      };
      host = mkOption {
        type = types.str;
        default = "ALL";
        description = "On which host.";
      };
      runAs = mkOption {
        type = types.str;
        default = "ALL:ALL";
        description = "As whom.";
      };
      commands = mkOption {
        default = [ ];
        description = "Which commands.";
        type = types.listOf (
          types.either types.str (
            types.submodule {
              options = {
                command = mkOption {
                  type = types.str;
                  description = "The command.";
                };
                options = mkOption {
                  type = types.listOf types.str;
                  default = [ ];
                  description = "Tags such as `NOPASSWD`.";
                };
              };
            }
          )
        );
      };
    };
  };
  ruleLines =
    r:
    let
      commands = lib.concatMapStringsSep ", " (
        c: if lib.isString c then c else lib.concatMapStrings (o: "${o}: ") c.options + c.command
      ) r.commands;
      whom =
        map (u: if lib.isInt u then "#${toString u}" else u) r.users
        ++ map (g: if lib.isInt g then "%#${toString g}" else "%${g}") r.groups;
    in
    lib.optionalString (r.commands != [ ]) (
      lib.concatMapStrings (w: "${w} ${r.host}=(${r.runAs}) ${commands}\n") whom
    );
  tags = lib.optional (!cfg.sudo.wheelNeedsPassword) "NOPASSWD" ++ [ "SETENV" ];
in
{
  options.security = {
    wrapperDir = mkOption {
      type = types.path;
      default = "/run/wrappers/bin";
      internal = true;
      description = "Where the wrappers are.";
    };
    wrapperDirSize = mkOption {
      type = types.str;
      default = "50%";
      description = "Size of the file system they are on.";
    };
    enableWrappers = mkOption {
      type = types.bool;
      default = true;
      description = "Whether there are wrappers.";
    };
    wrappers = mkOption {
      type = types.attrsOf (types.submodule wrapper);
      default = { };
      description = "Programs that run with more rights than their caller has. The store allows none of them, so each is a copy.";
    };

    sudo = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether there is sudo.";
      };
      package = mkOption {
        type = types.package;
        default = pkgs.sudo;
        defaultText = "pkgs.sudo";
        description = "The sudo package.";
      };
      wheelNeedsPassword = mkOption {
        type = types.bool;
        default = true;
        description = "Whether members of `wheel` give their password.";
      };
      execWheelOnly = mkOption {
        type = types.bool;
        default = false;
        description = "Whether only members of `wheel` may run it.";
      };
      keepTerminfo = mkOption {
        type = types.bool;
        default = true;
        description = "Whether variables of the terminal description are kept.";
      };
      defaultOptions = mkOption {
        type = types.listOf types.str;
        default = [ "SETENV" ];
        description = "Tags of the default rules.";
      };
      configFile = mkOption {
        type = types.lines;
        internal = true;
        description = "The whole file.";
      };
      extraRules = mkOption {
        type = types.listOf rule;
        default = [ ];
        description = "Further rules; later ones win.";
      };
      extraConfig = mkOption {
        type = types.lines;
        default = "";
        description = "Further lines of sudoers(5).";
      };
    };

    pki = {
      certificateFiles = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Files of certificates that are trusted besides Debian's.";
      };
      certificates = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Certificates that are trusted besides Debian's.";
      };
      caCertificateBlacklist = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Names of Debian's certificate files, without suffix, that are not trusted.";
      };
      installCACerts = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the bundle is in `/etc/ssl/certs`.";
      };
      caBundle = mkOption {
        type = types.path;
        internal = true;
        description = "The bundle.";
      };
    };

    polkit = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Whether there is polkit.";
      };
      adminIdentities = mkOption {
        type = types.listOf types.str;
        default = [ "unix-group:wheel" ];
        description = "Who counts as an administrator.";
      };
      extraConfig = mkOption {
        type = types.lines;
        default = "";
        description = "Rules in JavaScript.";
      };
      debug = mkOption {
        type = types.bool;
        default = false;
        description = "Whether decisions are logged.";
      };
    };
    rtkit.enable = lib.mkEnableOption "rtkit, which a container has no use for";
    apparmor.enable = lib.mkEnableOption "AppArmor, which is the host's";
    allowUserNamespaces = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted; the host decides.";
    };
    unprivilegedUsernsClone = mkOption {
      type = types.bool;
      default = false;
      description = "Accepted; the host decides.";
    };
  };

  config = lib.mkMerge [
    {
      security.wrappers = {
        su = root "${pkgs.base.raw "util-linux"}/usr/bin/su";
        mount = root "${pkgs.base.raw "mount"}/usr/bin/mount";
        umount = root "${pkgs.base.raw "mount"}/usr/bin/umount";
        passwd = root "${pkgs.base.raw "passwd"}/usr/bin/passwd";
        chsh = root "${pkgs.base.raw "passwd"}/usr/bin/chsh";
        newuidmap = root "${pkgs.base.raw "uidmap"}/usr/bin/newuidmap";
        newgidmap = root "${pkgs.base.raw "uidmap"}/usr/bin/newgidmap";
        unix_chkpwd = root "${pkgs.base.raw "libpam-modules-bin"}/usr/bin/unix_chkpwd";
      };
      system.build.wrappers = lib.optionals cfg.enableWrappers (
        map (w: {
          name = w.program;
          source = toString w.source;
          inherit (w)
            owner
            group
            setuid
            setgid
            permissions
            capabilities
            ;
        }) (lib.filter (w: w.enable) (lib.attrValues cfg.wrappers))
      );

      # One file of all: maintainer scripts, which would write it, do not run.
      security.pki.caBundle = pkgs.base.action "ca-bundle" "certificates" {
        folder = "${pkgs.base.raw "ca-certificates"}/usr/share/ca-certificates";
        leftOut = cfg.pki.caCertificateBlacklist;
        files = map (f: "${f}") cfg.pki.certificateFiles;
        texts = cfg.pki.certificates;
      };
      environment.etc = lib.mkIf cfg.pki.installCACerts {
        "ssl/certs/ca-certificates.crt".source = cfg.pki.caBundle;
        "ssl/certs/ca-bundle.crt".source = cfg.pki.caBundle;
        "pki/tls/certs/ca-bundle.crt".source = cfg.pki.caBundle;
      };
    }
    (lib.mkIf cfg.sudo.enable {
      security.wrappers.sudo = lib.mkMerge [
        (root "${pkgs.base.raw "sudo"}/usr/bin/sudo")
        (lib.mkIf cfg.sudo.execWheelOnly {
          permissions = "u+rx,g+x";
          group = "wheel";
        })
      ];
      environment.systemPackages = [ cfg.sudo.package ];
      security.sudo.extraRules = lib.mkBefore [
        {
          users = [ "root" ];
          commands = [
            {
              command = "ALL";
              options = [ "SETENV" ];
            }
          ];
        }
        {
          groups = [ "wheel" ];
          commands = [
            {
              command = "ALL";
              options = tags;
            }
          ];
        }
      ];
      security.sudo.configFile = ''
        Defaults env_reset
        Defaults secure_path="${cfg.wrapperDir}:/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:/usr/bin"
        Defaults env_keep += "SSH_AUTH_SOCK SSL_CERT_FILE NIX_SSL_CERT_FILE NIX_PATH LOCALE_ARCHIVE"
        ${lib.optionalString cfg.sudo.keepTerminfo ''Defaults env_keep += "TERMINFO TERMINFO_DIRS"''}
        ${lib.concatMapStrings ruleLines cfg.sudo.extraRules}
        ${cfg.sudo.extraConfig}
      '';
      # Copies: sudo insists on root as their owner, which the store's files may not show.
      environment.etc = {
        sudoers = {
          mode = "0440";
          text = cfg.sudo.configFile;
        };
        "sudo.conf" = {
          mode = "0440";
          text = "";
        };
      };
    })
    (lib.mkIf cfg.polkit.enable {
      environment.systemPackages = [ pkgs.polkitd ];
      users.users.polkitd = {
        isSystemUser = true;
        group = "polkitd";
        uid = 28;
      };
      users.groups.polkitd.gid = 28;
      environment.etc."polkit-1/rules.d/10-nixos.rules".text = ''
        polkit.addAdminRule(function(action, subject) {
          return [${lib.concatMapStringsSep ", " builtins.toJSON cfg.polkit.adminIdentities}];
        });
        ${cfg.polkit.extraConfig}
      '';
      security.wrappers.pkexec = lib.mkIf (lib.elem "pkexec" pkgs.base.names) (
        root "${pkgs.base.raw "pkexec"}/usr/bin/pkexec"
      );
    })
  ];
}
