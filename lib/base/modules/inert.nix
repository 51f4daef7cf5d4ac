# Options that modules set for real hardware or for a manual. A machine of this base has neither, so they are accepted
# and change nothing.
{ lib, ... }:
{
  options =
    lib.genAttrs
      [
        "console"
        "documentation"
        "hardware"
        "powerManagement"
      ]
      (
        name:
        lib.mkOption {
          type = lib.types.lazyAttrsOf lib.types.anything;
          default = { };
          description = "Accepted and without effect: a machine of this base has no ${name} of its own.";
        }
      )
    // {
      boot =
        lib.genAttrs
          [
            "binfmt"
            "initrd"
            "loader"
            "plymouth"
          ]
          (
            name:
            lib.mkOption {
              type = lib.types.lazyAttrsOf lib.types.anything;
              default = { };
              description = "Accepted and without effect: a machine of this base has no ${name} of its own.";
            }
          );
    };
}
