# Imports once per key, disabled modules, classes, aliases and renamed options.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  keyed = {
    key = "shared";
    list = [ "shared" ];
  };
  unwanted = {
    key = "unwanted";
    list = [ "unwanted" ];
  };
  result = lib.evalModules {
    class = "nixos";
    specialArgs.given = "special";
    modules = [
      {
        _class = "nixos";
        options = {
          list = mkOption { type = types.listOf types.str; };
          new.name = mkOption {
            type = types.str;
            default = "";
          };
          new.level = mkOption {
            type = types.int;
            default = 0;
          };
          warnings = mkOption { type = types.listOf types.str; };
          assertions = mkOption { type = types.listOf types.raw; };
        };
      }
      (lib.mkRenamedOptionModule [ "old" "name" ] [ "new" "name" ])
      (lib.mkAliasOptionModule [ "alias" ] [ "new" "name" ])
      (lib.mkRemovedOptionModule [ "gone" ] "Use something else.")
      (lib.mkChangedOptionModule [ "old" "level" ] [ "new" "level" ] (c: lib.toInt c.old.level))
      { imports = [ keyed ]; }
      { imports = [ keyed ]; }
      unwanted
      { disabledModules = [ { key = "unwanted"; } ]; }
      {
        _file = "person.nix";
        old.name = "from the old name";
        old.level = "3";
      }
      (
        { given, argument, ... }:
        {
          list = [
            given
            argument
          ];
        }
      )
      { _module.args.argument = "argument"; }
    ];
  };
in
{
  inherit (result.config)
    list
    new
    alias
    warnings
    ;
  failed = lib.length (lib.filter (a: !a.assertion) result.config.assertions);
}
