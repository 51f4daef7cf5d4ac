{ config, lib, ... }:
let
  cfg = config.codchi;
  drivers = import ../lib/drivers.nix;
  machineModules = lib.filter (module: module != null) (
    map (driver: driver.machine) (lib.attrValues drivers)
  );
  json =
    lib.types.nullOr (
      lib.types.oneOf [
        lib.types.bool
        lib.types.int
        lib.types.float
        lib.types.str
        (lib.types.listOf json)
        (lib.types.attrsOf json)
      ]
    )
    // {
      description = "JSON value";
    };
in
{
  imports = [ ./enable.nix ] ++ machineModules;

  options.codchi.driver = {
    name = lib.mkOption {
      type = lib.types.enum (lib.attrNames drivers);
      default = "none";
      example = "native";
      description = ''
        What the machine runs on. `codchi.lib.codeMachine` sets it. With `none` the user, the secrets (from
        `/etc/codchi-env`) and the init script work, and nothing is asked of a host.
      '';
    };
    settings = lib.mkOption {
      type = lib.types.attrsOf (lib.types.attrsOf json);
      default = { };
      example = {
        native.environment.LIBVIRT_DEBUG = "1";
      };
      description = ''
        Additions to a driver's engine settings, by driver. Attribute sets are merged, lists appended, everything
        else replaced. What a foreign module sets here is shown and has to be agreed to.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.all (name: drivers ? ${name}) (lib.attrNames cfg.driver.settings);
        message = "codchi.driver.settings: drivers are ${lib.concatStringsSep ", " (lib.attrNames drivers)}, not ${
          lib.concatStringsSep ", " (
            lib.filter (name: !(drivers ? ${name})) (lib.attrNames cfg.driver.settings)
          )
        }";
      }
    ];
  };
}
