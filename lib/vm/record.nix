# The record of a driver with virtual machines. `this` has what is its own: its name, what it is, what it requires.
this:
{
  kind = "vm";
  supports = {
    store = [ "shared" ];
    resources = [
      "memory"
      "cpus"
    ];
    capabilities = [
      "certificates"
      "display"
      "git-credentials"
      "netrc"
      "sound"
      "ssh-agent"
    ];
    # Wayland is shared memory, and only bytes pass.
    displays = [ "x11" ];
  };
  # Nothing of the host is named in the settings.
  variables = [ ];
  # They are few, and give a machine memory and processors only.
  allowedSettings = [
    "cpus"
    "memory"
  ];
  machine = import ./machine.nix this;
  host = ./host.nix;
}
// this
