# What only a host can give, and what it is for. The names are what `codchi.requiredCapabilities` takes.
{
  certificates = "the host's own certificate authorities";
  display = "windows of the machine's programs on the host's screen (X11 or Wayland)";
  git-credentials = "the host's git credential helper";
  gpu = "the host's graphics processor";
  kvm = "hardware virtualisation, for virtual machines inside the machine";
  netrc = "the host's netrc for downloads that need a log-in";
  sound = "playing and recording through the host's sound server";
  ssh-agent = "the host's ssh agent";
  usb = "USB devices handed over from the host";
}
