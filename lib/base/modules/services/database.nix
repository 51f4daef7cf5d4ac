# Options that every database server has.
{ lib }:
let
  inherit (lib) mkOption types;
in
{
  initialScript = mkOption {
    type = types.nullOr types.path;
    default = null;
    description = "SQL that is run once, when the data is made.";
  };
  ensureDatabases = mkOption {
    type = types.listOf types.str;
    default = [ ];
    description = "Databases that are made when they are missing.";
  };
}
