# Assertions and warnings of modules; `system.build.toplevel` checks them.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    assertions = mkOption {
      type = types.listOf types.unspecified;
      default = [ ];
      internal = true;
      description = "What must hold of a system, each with the message for when it does not.";
    };
    warnings = mkOption {
      type = types.listOf types.str;
      default = [ ];
      internal = true;
      description = "Messages shown when the system is evaluated.";
    };
    meta = {
      maintainers = mkOption {
        type = types.listOf types.unspecified;
        default = [ ];
        internal = true;
        description = "Who keeps a module.";
      };
      doc = mkOption {
        type = types.unspecified;
        default = null;
        internal = true;
        description = "A module's chapter in a manual.";
      };
    };
  };
}
