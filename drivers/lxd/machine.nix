# What a machine needs to run on LXD, beyond what every instance of an engine needs.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = import ./default.nix;
in
{
  imports = [ (import ../../lib/instance-machine.nix driver) ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    # The engine shows the host's list of binary formats, which no machine may write.
    systemd.services.systemd-binfmt.enable = false;
  };
}
