{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
in
{
  imports = [
    ./driver.nix
    ./enable.nix
  ];

  options.codchi.isolation.store = lib.mkOption {
    type = lib.types.enum [
      "shared"
      "closure"
    ];
    default = "shared";
    example = "closure";
    description = ''
      What of the store the machine sees: the host's whole store, with Nix working inside, or only its own closure,
      without Nix.
    '';
  };

  config = lib.mkIf (cfg.enable && driver.supports ? store) {
    assertions = [
      {
        assertion = lib.elem cfg.isolation.store driver.supports.store;
        message = ''codchi.isolation.store = "${cfg.isolation.store}" is not possible with driver `${driver.name}`, which has ${lib.concatStringsSep ", " driver.supports.store}'';
      }
    ];

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
