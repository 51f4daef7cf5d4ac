# What a machine needs to run on the native driver, beyond what every container needs (modules/container.nix).
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = import ./default.nix;
in
{
  imports = [ ../../modules/resources.nix ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    warnings = lib.optional (cfg.resources.disk != null) ''
      codchi.resources.disk is set, but the native driver keeps machines in ordinary folders and cannot limit them
    '';
  };
}
