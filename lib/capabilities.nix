# What only a host can give, and what it is for. The names are what `codchi.requiredCapabilities` takes.
{
  certificates = "the host's own certificate authorities";
  display = "windows of the machine's programs on the host's screen (X11 or Wayland)";
  fuse = "file systems of the machine's own programs (/dev/fuse)";
  git-credentials = "the host's git credential helper";
  gpu = "the host's graphics processor";
  kvm = "hardware virtualisation, for virtual machines inside the machine";
  nested-containers = "containers inside the machine";
  netrc = "the host's netrc for downloads that need a log-in";
  sound = "playing and recording through the host's sound server";
  ssh-agent = "the host's ssh agent";
  tun = "network tunnels of the machine's own programs (/dev/net/tun)";
  usb = "USB devices handed over from the host";
}
