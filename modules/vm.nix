# Wishes only drivers of virtual machines look at.
{ lib, ... }:
let
  size = import ../lib/size.nix { inherit lib; };
in
{
  options.codchi.vm = {
    kernel = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = null;
      example = lib.literalExpression "pkgs.linux_latest";
      description = "Kernel to boot instead of that of the configuration.";
    };
    initrd = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = null;
      example = lib.literalExpression "my-initrd";
      description = "Initial RAM disk to boot instead of that of the configuration.";
    };
    disks = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submodule {
          options.size = lib.mkOption {
            type = size.type;
            apply = size.toBytes;
            example = "10G";
            description = "Size, in bytes or as `10G`.";
          };
        }
      );
      default = { };
      example = {
        scratch.size = "10G";
      };
      description = "Further empty disks, by name.";
    };
    network = lib.mkOption {
      type = lib.types.enum [
        "user"
        "bridge"
        "none"
      ];
      default = "user";
      example = "bridge";
      description = "How the machine reaches a network.";
    };
    store = lib.mkOption {
      type = lib.types.enum [
        "virtiofs"
        "image"
      ];
      default = "virtiofs";
      example = "image";
      description = "Whether the host's store is shared, or an image of the closure is made.";
    };
  };
}
