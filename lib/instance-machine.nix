# What a machine needs to run as an instance of an engine, beyond what every container needs (modules/container.nix). `driver` is its
# record.
driver:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;
  told = "/run/codchi/host/network";
in
{
  imports = [ ../modules/resources.nix ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    # On another host it has a device of the engine's network; its address comes from whoever looks after it, who is not there to
    # set it.
    systemd.services.codchi-network = import ./network-unit.nix {
      inherit pkgs;
      description = "Network of a machine on another host";
      script = "exec ip -batch ${told}";
      unitConfig.ConditionPathExists = told;
    };
  };
}
