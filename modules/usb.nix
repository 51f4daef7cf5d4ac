{ config, lib, ... }:
let
  cfg = config.codchi;
in
{
  imports = [
    ./capabilities.nix
    ./enable.nix
  ];

  options.codchi.usb = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = cfg.usb.devices != [ ];
      defaultText = lib.literalExpression "config.codchi.usb.devices != [ ]";
      example = true;
      description = "Whether USB devices of the host can be handed over to the machine.";
    };
    devices = lib.mkOption {
      type = lib.types.listOf (lib.types.strMatching "[0-9a-f]{4}:[0-9a-f]{4}");
      default = [ ];
      example = [ "1d50:6018" ];
      description = "Devices handed over whenever they are plugged in, as `vendor:product`.";
    };
  };

  config.codchi.optionalCapabilities = lib.mkIf (cfg.enable && cfg.usb.enable) [ "usb" ];
}
