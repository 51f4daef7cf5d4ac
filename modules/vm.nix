# Wishes only drivers of virtual machines look at.
{ lib, ... }:
{
  options.codchi.vm.kernel = lib.mkOption {
    type = lib.types.nullOr lib.types.package;
    default = null;
    example = lib.literalExpression "pkgs.linux_latest";
    description = "Kernel to boot instead of that of the configuration.";
  };
}
