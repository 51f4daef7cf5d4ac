{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name or "none"};
  size = import ../lib/size.nix { inherit lib; };
  bytes =
    description: example:
    lib.mkOption {
      type = lib.types.nullOr size.type;
      default = null;
      apply = value: if value == null then null else size.toBytes value;
      inherit example description;
    };
in
{
  imports = [ ./enable.nix ];

  options.codchi.resources = {
    memory = bytes "Most memory the machine may use, in bytes or as `8G`; null: no limit." "8G";
    disk = bytes "Most disk space the machine may use, in bytes or as `50G`; null: no limit." "50G";
    cpus = lib.mkOption {
      type = lib.types.nullOr (lib.types.addCheck lib.types.number (value: value > 0));
      default = null;
      example = 1.5;
      description = "Most processors the machine may use; fractions are allowed; null: no limit.";
    };
    tasks = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.positive;
      default = 16384;
      example = 4096;
      description = "Most processes and threads in the machine, so that one that never stops forking leaves the host alone; null: no limit.";
    };
  };

  config.warnings =
    lib.optional
      (
        cfg.enable
        && driver.name != "none"
        && cfg.resources.disk != null
        && !(lib.elem "disk" driver.supports.resources)
      )
      "codchi.resources.disk is set, but the ${driver.name} driver does not limit how much of the disk a machine takes";
}
