# Codchi's own container runtime.
{
  name = "native";
  kind = "container";
  description = "a container of Codchi's own runtime, as root or as an ordinary user";
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
  allowedSettings = [
    "environment"
    "resources"
  ];
  machine = ./machine.nix;
  host = ./host.nix;
}
