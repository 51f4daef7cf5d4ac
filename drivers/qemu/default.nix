# Virtual machines of a QEMU that Codchi starts itself: no daemon, no disk image.
{
  name = "qemu";
  kind = "vm";
  description = "a virtual machine of QEMU, without a daemon";
  requires = [
    "qemu"
    "virtiofsd"
  ];
  supports = {
    store = [ "shared" ];
    resources = [
      "memory"
      "cpus"
    ];
    capabilities = [
      "certificates"
      "netrc"
    ];
  };
  # Nothing of the host is named in the settings.
  variables = [ ];
  # They are few, and give a machine memory and processors only.
  allowedSettings = [
    "cpus"
    "memory"
  ];
  machine = ./machine.nix;
  host = ./host.nix;
}
