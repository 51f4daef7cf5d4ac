# Renders the configuration and devices of an instance of Incus or LXD. Paths of the host are variables that the driver fills
# in. `guestApi` is the key by which the engine gives a machine access to itself; with `shift`, the owner of the store is the
# machine's root, else nobody in the machine.
{ guestApi, shift }:
{
  config,
  driver,
  lib,
}:
let
  cfg = config.codchi;

  # The engine mounts before PID 1 mounts /run: codchi-boot takes what comes from the host out of this folder.
  handedOver = "/dev/.codchi";

  readOnly = source: path: {
    type = "disk";
    inherit source path;
    readonly = "true";
  };
  optional = name: value: convert: lib.optionalAttrs (value != null) { ${name} = convert value; };

  calls = import ./calls.nix;
  # The engine's own list answers that calls are missing, so this stands in its place.
  withErrno = errno: lib.concatMapStringsSep "\n" (call: "${call} errno ${toString errno}");
  refused = withErrno 1 calls.refused;
  absent = withErrno 38 calls.absent;

  # AF_VSOCK, which no network namespace bounds, answers as if the kernel lacked it. Where the arguments of an old call lie, no
  # filter looks; whoever has that has the new one, too.
  families = "socket errno 97 [0,40,SCMP_CMP_MASKED_EQ,4294967295]\nsocketcall errno 38";
in
{
  version = 1;
  config = {
    "environment.NOTIFY_SOCKET" = "/run/codchi/notify/socket";
    # How systemd is asked to power off a container.
    "raw.lxc" = ''
      lxc.init.cmd = ${handedOver}/bin/codchi-boot --from ${handedOver} @toplevel@/init
      lxc.signal.halt = SIGRTMIN+4'';
    "security.nesting" = "true";
    "security.privileged" = "false";
    "security.syscalls.deny" = "reject_force_umount\n${refused}\n${absent}\n${families}";
    "security.syscalls.deny_default" = "false";
    ${guestApi} = "false";
    "boot.autostart" = "false";
  }
  // optional "limits.memory" cfg.resources.memory toString
  // optional "limits.processes" cfg.resources.tasks toString
  # Where the host's control groups count no tasks, each of the machine's users can have as many.
  // optional "limits.kernel.nproc" cfg.resources.tasks toString
  # Time of a processor in each tenth of a second: fractions are possible.
  // optional "limits.cpu.allowance" cfg.resources.cpus (
    cpus: "${toString (builtins.ceil (cpus * 100))}ms/100ms"
  );
  devices = {
    store = readOnly "@store@" "/nix/store" // lib.optionalAttrs shift { shift = "true"; };
    bin = readOnly "@bin@" "${handedOver}/bin";
    host = readOnly "@host@" "${handedOver}/host";
    notify = readOnly "@notify@" "${handedOver}/notify";
    endpoint = readOnly "@endpoint@" "/nix/var/nix/daemon-socket";
  };
}
# Of the device with the root file system, which is the person's, in bytes.
// optional "disk" cfg.resources.disk lib.id
