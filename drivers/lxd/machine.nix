# What a machine needs to run on LXD is what every container needs (modules/container.nix).
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = import ./default.nix;
in
{
  imports = [ ../../modules/resources.nix ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    # The engine shows the host's list of binary formats, which no machine may write.
    systemd.services.systemd-binfmt.enable = false;
  };
}
