{ config, lib, ... }:
let
  cfg = config.codchi;
in
{
  imports = [
    ./capabilities.nix
    ./enable.nix
  ];

  options.codchi.gpu.enable = lib.mkOption {
    type = lib.types.bool;
    default = false;
    example = true;
    description = "Whether programs use the host's graphics processor.";
  };

  config.codchi.optionalCapabilities = lib.mkIf (cfg.enable && cfg.gpu.enable) [ "gpu" ];
}
