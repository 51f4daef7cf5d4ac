# What a machine needs to run on LXD is what every container needs (modules/container.nix).
{
  imports = [ ../../modules/resources.nix ];

  # The engine shows the host's list of binary formats, which no machine may write.
  systemd.services.systemd-binfmt.enable = false;
}
