# What is the same for every driver whose containers a supervisor of Codchi's is the parent of: what such a machine has of its
# host, and what it may not do.
{ config, lib }:
let
  cfg = config.codchi;
  calls = import ./calls.nix;
  shared = cfg.isolation.store == "shared";

  bind = source: target: options: {
    kind = "bind";
    inherit source target options;
  };
  memory = kind: target: options: {
    inherit kind target options;
    outer = true;
  };
  readOnly = [
    "ro"
    "nosuid"
    "nodev"
  ];
in
{
  # Made by the supervisor, where the machine can neither unmount nor change them.
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
    (memory "tmpfs" "/run" [
      "mode=0755"
      "nosuid"
      "nodev"
    ])
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
    # Never swapped out, as a tmpfs would be.
    (memory "ramfs" "/run/codchi/credentials" [
      "mode=0700"
      "nosuid"
      "nodev"
      "noexec"
    ])
  ];

  environment = {
    # Tells systemd and every script that asks that this is a container.
    container = "codchi";
    NOTIFY_SOCKET = "/run/codchi/notify/socket";
  };

  terminals =
    let
      group = config.users.groups.tty.gid or null;
    in
    [
      "newinstance"
      "ptmxmode=0666"
      "mode=0620"
      "gid=${toString (if group == null then 5 else group)}"
      "nosuid"
      "noexec"
    ];

  # System calls.
  inherit (calls) absent;
  refused = lib.sort (a: b: a < b) (
    calls.refused
    ++ [
      "create_module"
      "quotactl_fd"
    ]
  );

  stop = {
    # How systemd is asked to power off a container.
    signal = "SIGRTMIN+4";
    timeoutSeconds = 90;
  };
}
