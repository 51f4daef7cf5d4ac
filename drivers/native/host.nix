# Renders the native engine's settings. Paths of the host are variables that the runtime fills in.
{
  config,
  driver,
  lib,
}:
let
  cfg = config.codchi;
  contained = import ../../lib/contained.nix { inherit config lib; };
  kernel = kind: target: options: { inherit kind target options; };
in
{
  version = 1;
  hostName = "@name@";
  root = "@root@";
  init = [
    "/run/codchi/bin/codchi-boot"
    "@toplevel@/init"
  ];
  inherit (contained) environment stop;
  mounts = contained.mounts ++ [
    (kernel "proc" "/proc" [
      "nosuid"
      "noexec"
      "nodev"
    ])
    (kernel "tmpfs" "/dev" [
      "mode=0755"
      "nosuid"
      "size=64m"
    ])
    (kernel "devpts" "/dev/pts" contained.terminals)
    (kernel "tmpfs" "/dev/shm" [
      "mode=1777"
      "nosuid"
      "nodev"
    ])
    (kernel "mqueue" "/dev/mqueue" [
      "nosuid"
      "nodev"
      "noexec"
    ])
    (kernel "sysfs" "/sys" [
      "ro"
      "nosuid"
      "nodev"
      "noexec"
    ])
    (kernel "cgroup2" "/sys/fs/cgroup" [
      "nosuid"
      "nodev"
      "noexec"
    ])
  ];
  devices = [
    "null"
    "zero"
    "full"
    "random"
    "urandom"
    "tty"
    "fuse?"
    "net/tun?"
  ];
  # None: a machine always has a user namespace, in which the files that engines hide are not readable anyway, and a
  # covered /proc or /sys would stop containers inside the machine from mounting theirs.
  maskedPaths = [ ];
  readOnlyPaths = [ ];
  capabilities.drop = [
    "CAP_AUDIT_READ"
    "CAP_BLOCK_SUSPEND"
    "CAP_BPF"
    "CAP_MAC_ADMIN"
    "CAP_MAC_OVERRIDE"
    "CAP_PERFMON"
    "CAP_SYSLOG"
    "CAP_SYS_MODULE"
    "CAP_SYS_RAWIO"
    "CAP_SYS_TIME"
    "CAP_WAKE_ALARM"
  ];
  seccomp = {
    errno = 1;
    inherit (contained) absent;
    deny = contained.refused;
    # It leads to the hypervisor, and no network namespace bounds it.
    families = [ "AF_VSOCK" ];
  };
  network.mode = "private";
  resources = {
    inherit (cfg.resources) memory cpus tasks;
  };
}
