# System containers of an Incus daemon.
{
  name = "incus";
  description = "an unprivileged system container of an Incus daemon";
  requires = [
    "incus"
    "idmapped-mounts"
  ];
  kind = "container";
  supports = {
    store = [ "shared" ];
    resources = [
      "memory"
      "cpus"
      "disk"
      "tasks"
    ];
    capabilities = [
      "certificates"
      "display"
      "git-credentials"
      "netrc"
      "sound"
      "ssh-agent"
    ];
  };
  variables = [
    "bin"
    "endpoint"
    "host"
    "notify"
    "store"
    "toplevel"
  ];
  # Instance configuration can open the whole host to a machine: each key is asked about.
  allowedSettings = [ ];
  machine = ./machine.nix;
  host = ./host.nix;
}
