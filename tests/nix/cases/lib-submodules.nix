# Submodules: names, defaults that depend on siblings, freeform settings, several declarations of one option.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  site =
    { name, config, ... }:
    {
      freeformType = types.attrsOf types.int;
      options = {
        host = mkOption {
          type = types.str;
          default = name;
        };
        url = mkOption { type = types.str; };
      };
      config.url = lib.mkDefault "https://${config.host}";
    };
  result = lib.evalModules {
    modules = [
      {
        options.sites = mkOption {
          type = types.attrsOf (types.submodule site);
          default = { };
        };
      }
      {
        options.sites = mkOption {
          type = types.attrsOf (types.submodule { options.port = mkOption { default = 443; }; });
        };
        options.one = mkOption {
          type = types.submodule { options.deep.value = mkOption { default = "x"; }; };
          default = { };
        };
      }
      {
        sites.a.extra = 7;
        sites.b = {
          host = "bee";
          url = lib.mkForce "u";
        };
      }
    ];
  };
in
{
  inherit (result.config) sites one;
  docs = map (o: o.name) (
    lib.filter (o: !o.internal && lib.hasPrefix "sites" o.name) (
      lib.optionAttrSetToDocList result.options
    )
  );
  declared = lib.length result.options.sites.declarations;
}
