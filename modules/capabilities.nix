{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  capabilities = import ../lib/capabilities.nix;
  listed = lib.concatStringsSep "\n" (
    lib.mapAttrsToList (name: what: "- `${name}`: ${what}") capabilities
  );
  type = lib.types.listOf (lib.types.enum (lib.attrNames capabilities));
  impossible = lib.filter (
    name: !(lib.elem name (driver.supports.capabilities or [ ]))
  ) cfg.requiredCapabilities;
in
{
  imports = [
    ./driver.nix
    ./enable.nix
  ];

  options.codchi = {
    requiredCapabilities = lib.mkOption {
      inherit type;
      default = [ ];
      example = [ "gpu" ];
      description = ''
        What the host must have, or the machine is refused before anything is built:

        ${listed}
      '';
    };
    optionalCapabilities = lib.mkOption {
      inherit type;
      default = [ ];
      example = [ "sound" ];
      description = "What the machine uses where the host has it; the names of `codchi.requiredCapabilities`.";
    };
  };

  config = lib.mkIf (cfg.enable && driver.kind != "none") {
    assertions = [
      {
        assertion = impossible == [ ];
        message = "codchi.requiredCapabilities: driver `${driver.name}` cannot give ${lib.concatStringsSep ", " impossible}";
      }
    ];
  };
}
