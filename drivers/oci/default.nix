# Containers that an OCI runtime of the host makes: crun, runc or youki.
{
  name = "oci";
  kind = "container";
  description = "a container of an OCI runtime (crun, runc, youki), as root or as an ordinary user";
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
      "display"
      "fuse"
      "git-credentials"
      "gpu"
      "kvm"
      "nested-containers"
      "netrc"
      "sound"
      "ssh-agent"
      "tun"
      "usb"
    ];
  };
  requires = [
    "oci-runtime"
    "user-namespaces"
    "subordinate-ids"
    "cgroup2"
  ];
  variables = [
    "agent"
    "bin"
    "endpoint"
    "host"
    "name"
    "notify"
    "root"
    "store"
    "toplevel"
  ];
  # A runtime's configuration can open the whole host to a machine: each key is asked about.
  allowedSettings = [ ];
  machine = ./machine.nix;
  host = ./host.nix;
}
