# What a machine needs to run on Incus, beyond what every container needs (modules/container.nix).
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = import ./default.nix;
in
{
  imports = [ ../../modules/resources.nix ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    warnings = lib.optional (cfg.resources.disk != null) ''
      codchi.resources.disk is set, but the ${driver.name} driver does not limit the root file system of an instance yet
    '';
  };
}
