# Kernel settings and what a container has none of.
{ config, lib, ... }:
let
  inherit (lib) mkOption mkEnableOption types;
  cfg = config.boot;
  value = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.str
    ]
  );
  show = v: if lib.isBool v then (if v then "1" else "0") else toString v;
in
{
  options.boot = {
    isContainer = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the system runs in a container, so without a kernel of its own.";
    };
    isNspawnContainer = mkOption {
      type = types.bool;
      default = false;
      internal = true;
      description = "Whether the container is one of systemd-nspawn.";
    };
    kernel = {
      enable = mkOption {
        type = types.bool;
        default = !cfg.isContainer;
        defaultText = "!config.boot.isContainer";
        description = "Whether the system has a kernel.";
      };
      sysctl = mkOption {
        type = types.attrsOf value;
        default = { };
        description = "Kernel parameters set at boot, where the machine may.";
      };
    };
    kernelModules = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Kernel modules loaded at boot; none in a container.";
    };
    blacklistedKernelModules = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Kernel modules that are not loaded by themselves.";
    };
    extraModprobeConfig = mkOption {
      type = types.lines;
      default = "";
      description = "Lines of modprobe.d(5).";
    };
    kernelParams = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Kernel command line.";
    };
    supportedFilesystems = mkOption {
      type = types.anything;
      default = [ ];
      description = "File systems the system can mount.";
    };
    tmp = {
      cleanOnBoot = mkEnableOption "emptying /tmp at boot";
      useTmpfs = mkEnableOption "a tmpfs on /tmp";
      tmpfsSize = mkOption {
        type = types.either types.str types.ints.positive;
        default = "50%";
        description = "Size of that tmpfs.";
      };
    };
    postBootCommands = mkOption {
      type = types.lines;
      default = "";
      description = "Commands run before systemd starts.";
    };
    enableContainers = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the system runs declarative containers of its own; this base has none.";
    };
    consoleLogLevel = mkOption {
      type = types.int;
      default = 4;
      description = "Level of kernel messages on the console.";
    };
  };

  options = {
    fileSystems = mkOption {
      type = types.lazyAttrsOf types.anything;
      default = { };
      description = "File systems of a machine with disks. A container's come from its driver.";
    };
    swapDevices = mkOption {
      type = types.listOf types.anything;
      default = [ ];
      description = "Swap devices of a machine with disks.";
    };
  };

  config = {
    boot.kernel.sysctl = { };
    environment.etc = lib.mkMerge [
      (lib.mkIf (cfg.kernel.sysctl != { }) {
        # A container may set few of them; the others are no reason to fail.
        "sysctl.d/60-nixos.conf".text = lib.concatStrings (
          lib.mapAttrsToList (n: v: lib.optionalString (v != null) "-${n}=${show v}\n") cfg.kernel.sysctl
        );
      })
      (lib.mkIf (cfg.kernelModules != [ ] && !cfg.isContainer) {
        "modules-load.d/nixos.conf".text = lib.concatLines cfg.kernelModules;
      })
      (lib.mkIf (cfg.extraModprobeConfig != "" || cfg.blacklistedKernelModules != [ ]) {
        "modprobe.d/nixos.conf".text =
          lib.concatMapStrings (m: "blacklist ${m}\n") cfg.blacklistedKernelModules + cfg.extraModprobeConfig;
      })
    ];
    system.activationScripts.postBoot = lib.mkIf (cfg.postBootCommands != "") {
      deps = [
        "users"
        "groups"
        "etc"
      ];
      text = "if [ ! -e /run/booted-system ]; then\n${cfg.postBootCommands}\nfi";
    };
    systemd.mounts = lib.mkIf cfg.tmp.useTmpfs [
      {
        what = "tmpfs";
        where = "/tmp";
        type = "tmpfs";
        wantedBy = [ "local-fs.target" ];
        mountConfig.Options = [
          "mode=1777"
          "strictatime"
          "nosuid"
          "nodev"
          "size=${toString cfg.tmp.tmpfsSize}"
        ];
      }
    ];
    systemd.tmpfiles.rules = lib.mkIf cfg.tmp.cleanOnBoot [ "D! /tmp 1777 root root" ];
  };
}
