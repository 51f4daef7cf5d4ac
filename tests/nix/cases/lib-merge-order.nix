# Where definitions come from, and what decides among them.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  config =
    (lib.evalModules {
      modules = [
        {
          options = {
            list = mkOption { type = types.listOf types.str; };
            text = mkOption { type = types.lines; };
            number = mkOption {
              type = types.int;
              default = 1;
            };
            set = mkOption { type = types.attrsOf types.int; };
            lazy = mkOption { type = types.lazyAttrsOf types.int; };
            flag = mkOption { type = types.bool; };
          };
        }
        {
          imports = [ { list = [ "imported" ]; } ];
          list = [ "first" ];
          text = "a";
          number = lib.mkDefault 2;
          set.a = 1;
          flag = lib.mkIf false true;
        }
        {
          list = lib.mkMerge [
            (lib.mkBefore [ "before" ])
            (lib.mkAfter [ "after" ])
            (lib.mkIf false [ "never" ])
          ];
          text = lib.mkOrder 400 "b";
          number = 3;
          set = lib.mkIf true {
            a = lib.mkForce 2;
            b = lib.mkIf false 3;
          };
          lazy.x = 4;
          flag = lib.mkVMOverride false;
        }
      ];
    }).config;
in
config
