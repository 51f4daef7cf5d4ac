{ config, lib, ... }:
let
  cfg = config.codchi;
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
    ./enable.nix
  ];

  options.codchi.display = {
    x11.enable = protocol "X11";
    wayland.enable = protocol "Wayland";
  };

  config.codchi.optionalCapabilities = lib.mkIf (
    cfg.enable && (cfg.display.x11.enable || cfg.display.wayland.enable)
  ) [ "display" ];
}
