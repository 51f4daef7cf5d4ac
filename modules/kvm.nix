{ config, lib, ... }:
let
  cfg = config.codchi;
in
{
  imports = [
    ./capabilities.nix
    ./enable.nix
  ];

  options.codchi.kvm.enable = lib.mkOption {
    type = lib.types.bool;
    default = false;
    example = true;
    description = "Whether the machine may run virtual machines of its own with hardware virtualisation.";
  };

  config.codchi.optionalCapabilities = lib.mkIf (cfg.enable && cfg.kvm.enable) [ "kvm" ];
}
