# systemd: units of the system and of users, temporary files, the managers' settings.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.systemd;
  opts = import ./options.nix { inherit lib; };
  render = import ./render.nix {
    inherit lib pkgs;
    # One package: the base system has them all.
    defaultPath = config.environment.corePackages;
  };

  byName = kinds: lib.mapAttrs (
    _: kind:
    mkOption {
      default = { };
      description = "Units of the kind `${kind.suffix}`, by name.";
      type = types.attrsOf (types.submodule { inherit (kind) options; });
    }
  ) kinds;
  listed = lib.mapAttrs (
    _: kind:
    mkOption {
      default = [ ];
      description = "Units of the kind `${kind.suffix}`.";
      type = types.listOf (types.submodule { inherit (kind) options; });
    }
  ) opts.listed;

  unitsOption = mkOption {
    default = { };
    description = "Units as text, by file name.";
    type = types.attrsOf (types.submodule { options = opts.unit; });
  };

  # The units that the other options of a manager amount to.
  rendered =
    manager: environment:
    let
      unit = kind: name: u: {
        inherit (u)
          enable
          overrideStrategy
          aliases
          wantedBy
          requiredBy
          upheldBy
          ;
        text = render.unit kind name u environment;
      };
      named = lib.concatLists (
        lib.mapAttrsToList (
          option: kind:
          lib.mapAttrsToList (n: u: {
            name = if u.name != null then u.name else "${n}.${kind.suffix}";
            value = unit kind n u;
          }) manager.${option}
        ) opts.kinds
      );
      fromLists = lib.concatLists (
        lib.mapAttrsToList (
          option: kind:
          map (u: {
            name = if u.name != null then u.name else "${escape u.where}.${kind.suffix}";
            value = unit kind (escape u.where) u;
          }) (manager.${option} or [ ])
        ) opts.listed
      );
    in
    lib.listToAttrs (named ++ fromLists);
  escape =
    path:
    if path == "/" then
      "-"
    else
      builtins.replaceStrings [ "-" " " "/" ] [ "\\x2d" "\\x20" "-" ] (
        lib.removeSuffix "/" (lib.removePrefix "/" path)
      );

  folder =
    kind: units: packages: links:
    pkgs.base.action "${kind}-units" "units" {
      inherit kind links;
      packages = map toString packages;
      units = lib.mapAttrs (_: u: {
        inherit (u)
          enable
          wantedBy
          requiredBy
          upheldBy
          aliases
          ;
        dropIn = u.overrideStrategy == "asDropin";
        text = if u.text == null then "" else u.text;
      }) units;
    };

  timersOf =
    services:
    lib.mapAttrs (_: s: {
      wantedBy = [ "timers.target" ];
      timerConfig.OnCalendar = s.startAt;
    }) (lib.filterAttrs (_: s: s.startAt != [ ]) services);

  manager = settings: "[Manager]\n" + render.section settings;

  # What a container has no use for, or what maintainer scripts or Nix do instead.
  notHere = [
    "systemd-firstboot.service"
    "systemd-sysusers.service"
    "systemd-update-done.service"
    "systemd-hwdb-update.service"
    "systemd-machine-id-commit.service"
    "ldconfig.service"
    "e2scrub_reap.service"
    "e2scrub_all.timer"
    "apt-daily.timer"
    "apt-daily-upgrade.timer"
    "dpkg-db-backup.timer"
    "fstrim.timer"
    "man-db.timer"
    "systemd-pcrphase.service"
    "systemd-pcrphase-sysinit.service"
  ];
  notInContainers = [
    "console-getty.service"
    "container-getty@.service"
    "dev-hugepages.mount"
    "getty-static.service"
    "getty@.service"
    "proc-sys-fs-binfmt_misc.automount"
    "proc-sys-fs-binfmt_misc.mount"
    "serial-getty@.service"
    "sys-fs-fuse-connections.mount"
    "sys-kernel-config.mount"
    "sys-kernel-debug.mount"
    "sys-kernel-tracing.mount"
    "systemd-boot-random-seed.service"
    "systemd-fsck-root.service"
    "systemd-modules-load.service"
    "systemd-network-generator.service"
    "systemd-networkd-wait-online.service"
    "systemd-pstore.service"
    "systemd-random-seed.service"
    "systemd-remount-fs.service"
    "systemd-tpm2-setup-early.service"
    "systemd-tpm2-setup.service"
    "systemd-udev-settle.service"
    "systemd-udev-trigger.service"
    "systemd-udevd-control.socket"
    "systemd-udevd-kernel.socket"
    "systemd-udevd.service"
    "systemd-udev-load-credentials.service"
    "systemd-hibernate-clear.service"
    "systemd-ask-password-console.path"
  ];
in
{
  options.systemd =
    byName opts.kinds
    // listed
    // {
      units = unitsOption;
      package = mkOption {
        type = types.package;
        default = pkgs.systemd;
        defaultText = "pkgs.systemd";
        description = "The systemd package.";
      };
      packages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages whose units are taken.";
      };
      defaultUnit = mkOption {
        type = types.str;
        default = "multi-user.target";
        description = "What is started at boot.";
      };
      ctrlAltDelUnit = mkOption {
        type = types.str;
        default = "reboot.target";
        description = "What Ctrl-Alt-Del starts.";
      };
      globalEnvironment = mkOption {
        type = types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.str
              types.path
              types.package
            ]
          )
        );
        default = { };
        description = "Variables of every service.";
      };
      managerEnvironment = mkOption {
        type = types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.str
              types.path
              types.package
            ]
          )
        );
        default = { };
        description = "Variables of the manager itself.";
      };
      enableEmergencyMode = mkOption {
        type = types.bool;
        default = false;
        description = "Whether a failed boot stops in a rescue shell.";
      };
      extraConfig = opts.lines "Lines of system.conf.";
      settings.Manager = opts.section "The manager's settings.";
      sleep.extraConfig = opts.lines "Lines of sleep.conf.";
      coredump = {
        enable = mkOption {
          type = types.bool;
          default = false;
          description = "Accepted; core dumps are the host's.";
        };
        extraConfig = opts.lines "Lines of coredump.conf.";
      };
      oomd = mkOption {
        type = types.lazyAttrsOf types.anything;
        default = { };
        description = "Accepted; memory pressure is the host's.";
      };
      suppressedSystemUnits = opts.strings "Units that are masked.";
      additionalUpstreamSystemUnits = opts.strings "Accepted; every unit of Debian's systemd is there.";
      generators = mkOption {
        type = types.attrsOf types.path;
        default = { };
        description = "Generators by name; `/dev/null` masks one.";
      };
      shutdown = mkOption {
        type = types.attrsOf types.path;
        default = { };
        description = "Programs run at shutdown, by name.";
      };
      tmpfiles = {
        rules = opts.strings "Lines of tmpfiles.d(5).";
        packages = mkOption {
          type = types.listOf types.package;
          default = [ ];
          apply = map lib.getLib;
          description = "Packages whose rules are taken.";
        };
        settings = mkOption {
          default = { };
          description = "Rules by file name, path and type.";
          type = types.attrsOf (
            types.attrsOf (
              types.attrsOf (
                types.submodule {
                  options = lib.mapAttrs (
                    _: default:
                    mkOption {
                      type = types.str;
                      inherit default;
                      description = "A field of the rule.";
                    }
                  ) {
                    mode = "-";
                    user = "-";
                    group = "-";
                    age = "-";
                    argument = "";
                  };
                }
              )
            )
          );
        };
      };
      user =
        byName opts.kinds
        // {
          units = unitsOption;
          extraConfig = opts.lines "Lines of user.conf.";
          settings.Manager = opts.section "The user manager's settings.";
          generators = mkOption {
            type = types.attrsOf types.path;
            default = { };
            description = "Generators of user managers, by name.";
          };
          tmpfiles = {
            enable = mkOption {
              type = types.bool;
              default = true;
              description = "Whether user managers make temporary files.";
            };
            rules = opts.strings "Lines of user-tmpfiles.d.";
            users = mkOption {
              default = { };
              description = "Rules of single users.";
              type = types.attrsOf (
                types.submodule { options.rules = opts.strings "Lines of user-tmpfiles.d."; }
              );
            };
          };
        };
    };

  config = {
    systemd = {
      timers = timersOf cfg.services;
      user.timers = timersOf cfg.user.services;
      units = rendered cfg cfg.globalEnvironment;
      user.units = rendered cfg.user { };
      suppressedSystemUnits = notHere ++ lib.optionals config.boot.isContainer notInContainers;
      managerEnvironment = {
        PATH = lib.mkDefault "${config.security.wrapperDir}:/run/current-system/sw/bin:/usr/bin";
        LANG = lib.mkDefault config.i18n.defaultLocale;
      };
      settings.Manager = {
        DefaultEnvironment = lib.concatStringsSep " " (
          lib.mapAttrsToList (n: v: builtins.toJSON "${n}=${toString v}") (
            lib.filterAttrs (_: v: v != null) cfg.managerEnvironment
          )
        );
      };
      # What a switch must not stop, whatever changed in it: sessions hang on it, or it belongs to the boot.
      services =
        lib.genAttrs
          [
            "systemd-journal-flush"
            "systemd-logind"
            "systemd-tmpfiles-setup"
            "systemd-tmpfiles-setup-dev"
            "systemd-update-utmp"
            "systemd-user-sessions"
            "user-runtime-dir@"
            "user@"
          ]
          (_: {
            overrideStrategy = "asDropin";
            restartIfChanged = false;
            enableDefaultPath = false;
          })
        // {
          dbus = {
            overrideStrategy = "asDropin";
            restartIfChanged = false;
            enableDefaultPath = false;
          };
          systemd-journald = {
            overrideStrategy = "asDropin";
            stopIfChanged = false;
            enableDefaultPath = false;
          };
        };
    };

    system.build = {
      units = folder "system" cfg.units ([ cfg.package ] ++ cfg.packages) (
        lib.genAttrs cfg.suppressedSystemUnits (_: "/dev/null")
        // {
          "default.target" = "/usr/lib/systemd/system/${cfg.defaultUnit}";
          "ctrl-alt-del.target" = "/usr/lib/systemd/system/${cfg.ctrlAltDelUnit}";
        }
      );
      userUnits = folder "user" cfg.user.units ([ cfg.package ] ++ cfg.packages) { };
    };

    environment.etc = {
      "systemd/system".source = config.system.build.units;
      "systemd/user".source = config.system.build.userUnits;
      "systemd/system.conf".text = manager cfg.settings.Manager + cfg.extraConfig;
      "systemd/user.conf".text =
        manager (
          {
            DefaultEnvironment = builtins.toJSON "PATH=${config.security.wrapperDir}:/run/current-system/sw/bin:/usr/bin";
          }
          // cfg.user.settings.Manager
        )
        + cfg.user.extraConfig;
      "systemd/sleep.conf".text = "[Sleep]\n${cfg.sleep.extraConfig}";
      "tmpfiles.d/00-nixos.conf".text = ''
        d /nix/var 0755 root root -
        d /var/local/bin 0755 root root -
        d /var/local/lib 0755 root root -
        d /var/local/share 0755 root root -
        ${lib.concatLines cfg.tmpfiles.rules}
      '';
    }
    // lib.mapAttrs' (n: rules: lib.nameValuePair "tmpfiles.d/${n}.conf" {
      text = lib.concatStrings (
        lib.concatLists (
          lib.mapAttrsToList (
            path: types:
            lib.mapAttrsToList (
              type: r: "${type} ${builtins.toJSON path} ${r.mode} ${r.user} ${r.group} ${r.age} ${r.argument}\n"
            ) types
          ) rules
        )
      );
    }) cfg.tmpfiles.settings
    // lib.mapAttrs' (n: source: lib.nameValuePair "systemd/system-generators/${n}" { inherit source; }) cfg.generators
    // lib.mapAttrs' (n: source: lib.nameValuePair "systemd/user-generators/${n}" { inherit source; }) cfg.user.generators
    // lib.mapAttrs' (n: source: lib.nameValuePair "systemd/system-shutdown/${n}" { inherit source; }) cfg.shutdown
    // lib.optionalAttrs (cfg.user.tmpfiles.rules != [ ]) {
      "xdg/user-tmpfiles.d/00-nixos.conf".text = lib.concatLines cfg.user.tmpfiles.rules;
    };

    environment.systemPackages = cfg.packages ++ cfg.tmpfiles.packages;
  };
}
