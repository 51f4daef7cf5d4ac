# System containers of an Incus daemon.
{
  name = "incus";
  kind = "container";
  description = "an unprivileged system container of an Incus daemon";
  supports = {
    store = [
      "shared"
      "closure"
    ];
    resources = [
      "memory"
      "cpus"
      "tasks"
    ];
    capabilities = [
      "certificates"
      "git-credentials"
      "kvm"
      "netrc"
    ];
  };
  requires = [
    "incus"
    "idmapped-mounts"
  ];
  variables = [
    "agent"
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
