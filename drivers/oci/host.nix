# Renders what a supervisor prepares, and as `config` what the runtime is told: a configuration of the OCI runtime specification
# 1.0.2. Paths of the host are variables that the supervisor fills in; it also puts in what only it knows (the machine's ids, its
# control group, the staged root, the devices that the host has).
{
  config,
  driver,
  lib,
}:
let
  inherit (config.codchi) resources;
  contained = import ../../lib/contained.nix { inherit config lib; };

  # All but what reaches beyond a user namespace, or would make units fail that find they have it.
  capabilities = map (name: "CAP_${name}") [
    "CHOWN"
    "DAC_OVERRIDE"
    "DAC_READ_SEARCH"
    "FOWNER"
    "FSETID"
    "KILL"
    "SETGID"
    "SETUID"
    "SETPCAP"
    "LINUX_IMMUTABLE"
    "NET_BIND_SERVICE"
    "NET_BROADCAST"
    "NET_ADMIN"
    "NET_RAW"
    "IPC_LOCK"
    "IPC_OWNER"
    "SYS_CHROOT"
    "SYS_PTRACE"
    "SYS_PACCT"
    "SYS_ADMIN"
    "SYS_BOOT"
    "SYS_NICE"
    "SYS_RESOURCE"
    "SYS_TTY_CONFIG"
    "MKNOD"
    "LEASE"
    "AUDIT_WRITE"
    "AUDIT_CONTROL"
    "SETFCAP"
    "CHECKPOINT_RESTORE"
  ];

  kernel = type: destination: options: {
    inherit type destination options;
    source = type;
  };
  hidden = [
    "nosuid"
    "noexec"
    "nodev"
  ];
  error = errnoRet: {
    action = "SCMP_ACT_ERRNO";
    inherit errnoRet;
  };
  limit = value: name: lib.optionalAttrs (value != null) { ${name} = value; };
in
{
  version = 1;
  root = "@root@";
  inherit (contained) mounts stop;
  # Of the host, beside those that every runtime gives; `?`: where the host has it.
  devices = [
    "fuse?"
    "net/tun?"
  ];
  config = {
    ociVersion = "1.0.2";
    hostname = "@name@";
    root.path = "@root@";
    process = {
      terminal = true;
      user = {
        uid = 0;
        gid = 0;
      };
      cwd = "/";
      args = [
        "/run/codchi/bin/codchi-boot"
        "--supervised"
        "@toplevel@/init"
      ];
      env = lib.mapAttrsToList (name: value: "${name}=${value}") contained.environment;
      capabilities = {
        bounding = capabilities;
        effective = capabilities;
        permitted = capabilities;
      };
      noNewPrivileges = false;
    };
    mounts = [
      (kernel "proc" "/proc" hidden)
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
      (kernel "mqueue" "/dev/mqueue" hidden)
      (kernel "sysfs" "/sys" ([ "ro" ] ++ hidden))
      (kernel "cgroup" "/sys/fs/cgroup" ([ "rw" ] ++ hidden))
    ];
    linux = {
      namespaces = map (type: { inherit type; }) [
        "user"
        "pid"
        "mount"
        "network"
        "ipc"
        "uts"
        "cgroup"
      ];
      resources = {
        memory = limit resources.memory "limit";
        cpu = lib.optionalAttrs (resources.cpus != null) {
          period = 100000;
          quota = builtins.ceil (resources.cpus * 100000);
        };
        pids = limit resources.tasks "limit";
      };
      # None, as on the native driver: a covered /proc or /sys would stop containers inside the machine from mounting theirs.
      maskedPaths = [ ];
      readonlyPaths = [ ];
      seccomp = {
        defaultAction = "SCMP_ACT_ALLOW";
        syscalls = [
          (error 1 // { names = contained.refused; })
          (error 38 // { names = contained.absent ++ [ "socketcall" ]; })
          # AF_VSOCK leads to the hypervisor, and no network namespace bounds it.
          (
            error 97
            // {
              names = [ "socket" ];
              args = [
                {
                  # The kernel looks at half of the register.
                  index = 0;
                  value = 4294967295;
                  valueTwo = 40;
                  op = "SCMP_CMP_MASKED_EQ";
                }
              ];
            }
          )
        ];
      };
    };
  };
}
