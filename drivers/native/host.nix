# Renders the native engine's settings. Paths of the host are variables that the runtime fills in.
{
  config,
  driver,
  lib,
}:
let
  cfg = config.codchi;
  calls = import ../../lib/calls.nix;
  shared = cfg.isolation.store == "shared";
  ttyGroup = config.users.groups.tty.gid or null;

  bind = source: target: options: {
    kind = "bind";
    inherit source target options;
  };
  kernel = kind: target: options: { inherit kind target options; };
  readOnly = [
    "ro"
    "nosuid"
    "nodev"
  ];
in
{
  version = 1;
  hostName = "@name@";
  root = "@root@";
  init = [
    "/run/codchi/bin/codchi-boot"
    "@toplevel@/init"
  ];
  environment = {
    # Tells systemd and every script that asks that this is a container.
    container = "codchi";
    NOTIFY_SOCKET = "/run/codchi/notify/socket";
  };
  mounts = [
    (
      bind "@store@" "/nix/store" readOnly
      // {
        idmap = true;
      }
      // lib.optionalAttrs (!shared) { closure = true; }
    )
  ]
  ++ lib.optional shared (bind "@endpoint@" "/nix/var/nix/daemon-socket" readOnly)
  ++ [
    (
      kernel "tmpfs" "/run" [
        "mode=0755"
        "nosuid"
        "nodev"
      ]
      // {
        outer = true;
      }
    )
    (bind "@bin@" "/run/codchi/bin" readOnly)
    (bind "@agent@" "/run/codchi/agent" [
      "nosuid"
      "nodev"
    ])
    (bind "@host@" "/run/codchi/host" readOnly)
    (bind "@notify@" "/run/codchi/notify" [
      "nosuid"
      "nodev"
    ])
    (
      # Never swapped out, as a tmpfs would be.
      kernel "ramfs" "/run/codchi/credentials" [
        "mode=0700"
        "nosuid"
        "nodev"
        "noexec"
      ]
      // {
        outer = true;
      }
    )
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
    (kernel "devpts" "/dev/pts" [
      "newinstance"
      "ptmxmode=0666"
      "mode=0620"
      "gid=${toString (if ttyGroup == null then 5 else ttyGroup)}"
      "nosuid"
      "noexec"
    ])
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
    inherit (calls) absent;
    deny = lib.sort (a: b: a < b) (
      calls.refused
      ++ [
        "create_module"
        "quotactl_fd"
      ]
    );
    # It leads to the hypervisor, and no network namespace bounds it.
    families = [ "AF_VSOCK" ];
  };
  network.mode = "private";
  resources = {
    inherit (cfg.resources) memory cpus tasks;
  };
  stop = {
    # How systemd is asked to power off a container.
    signal = "SIGRTMIN+4";
    timeoutSeconds = 90;
  };
}
