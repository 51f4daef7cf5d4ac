{ config, lib, ... }:
let
  cfg = config.codchi;
in
{
  imports = [
    ./capabilities.nix
    ./enable.nix
  ];

  options.codchi.sound.enable = lib.mkOption {
    type = lib.types.bool;
    default = false;
    example = true;
    description = "Whether programs play and record sound through the host.";
  };

  config.codchi.optionalCapabilities = lib.mkIf (cfg.enable && cfg.sound.enable) [ "sound" ];
}
