# What a machine needs to run on the native driver, beyond what every container needs (modules/container.nix).
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = import ./default.nix;
in
{
  imports = [ ../../modules/resources.nix ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    # Each path of the closure is a mount, which the machine cannot take away: it need not try when it goes down.
    systemd.units."nix-store-.mount" = lib.mkIf (cfg.isolation.store == "closure") {
      overrideStrategy = "asDropin";
      text = ''
        [Unit]
        DefaultDependencies=no
      '';
    };
  };
}
