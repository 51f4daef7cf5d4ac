{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  wanted = lib.filter (name: cfg.display.${name}.enable) [
    "x11"
    "wayland"
  ];
  possible = driver.supports.displays or wanted;
  protocol =
    name:
    lib.mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = "Whether programs show windows on the host's screen through ${name}.";
    };
in
{
  imports = [
    ./capabilities.nix
    ./driver.nix
    ./enable.nix
  ];

  options.codchi.display = {
    x11.enable = protocol "X11";
    wayland.enable = protocol "Wayland";
  };

  config = lib.mkIf cfg.enable {
    codchi.optionalCapabilities = lib.mkIf (wanted != [ ]) [ "display" ];
    assertions = lib.mkIf (wanted != [ ] && lib.elem "display" cfg.requiredCapabilities) [
      {
        assertion = lib.any (name: lib.elem name possible) wanted;
        message = "codchi.requiredCapabilities: driver `${driver.name}` cannot give display by ${lib.concatStringsSep ", " wanted}; it can by ${lib.concatStringsSep ", " possible}";
      }
    ];
  };
}
