# Definitions of options that the base does not have: an error that names them, or, with `base.lenient`, a warning.
#
# What no option matches lands in the free form of the configuration. Its type keeps the definitions as they are and
# looks at them only when the system is built, so that a definition under a false condition is none.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;

  isPlain = v: lib.isAttrs v && !(v ? _type) && !lib.isDerivation v;

  # The paths a definition really defines.
  defined =
    depth: path: value:
    if value._type or null == "if" then
      lib.optionals value.condition (defined depth path value.content)
    else if value._type or null == "merge" then
      lib.concatMap (defined depth path) value.contents
    else if lib.isAttrs value && value ? _type && value ? content then
      defined depth path value.content
    else if isPlain value && depth > 0 then
      lib.concatLists (lib.mapAttrsToList (n: defined (depth - 1) (path ++ [ n ])) value)
    else
      [ path ];

  undeclared = lib.mkOptionType {
    name = "undeclared";
    description = "definitions without an option";
    merge = loc: defs: {
      base.undeclared = lib.concatMap (
        d:
        map (path: {
          option = lib.showOption path;
          inherit (d) file;
        }) (defined 5 loc d.value)
      ) defs;
    };
  };

  found = lib.unique (config.base.undeclared or [ ]);
  message = d: "the debian base has no option `${d.option}' (defined in ${toString d.file})";
in
{
  freeformType = undeclared;

  options.base.lenient = mkOption {
    type = types.bool;
    default = false;
    description = "Whether definitions of options that this base does not have are listed as warnings and ignored, instead of refused.";
  };

  config = {
    warnings = lib.mkIf config.base.lenient (map (d: "${message d}; ignored") found);
    assertions = lib.mkIf (!config.base.lenient) (
      map (d: {
        assertion = false;
        message = "${message d}; set `base.lenient = true' to ignore it, or use the base `nixpkgs'";
      }) found
    );
  };
}
