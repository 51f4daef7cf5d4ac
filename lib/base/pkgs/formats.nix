# nixpkgs' `pkgs.formats`: a type for the settings of a program, and the file they become.
final: _:
let
  inherit (final) lib writeText;
  inherit (lib) types generators;

  scalar = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
    ]
  );
  # Values that nest as JSON's do.
  value = lib.fix (
    self:
    (types.nullOr (
      types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        types.path
        (types.attrsOf self)
        (types.listOf self)
      ]
    ))
    // {
      description = "JSON value";
    }
  );

  json = _: {
    type = value;
    generate = name: v: writeText name (builtins.toJSON v);
  };

  atomType =
    listsAsDuplicateKeys: listToValue:
    if listsAsDuplicateKeys || listToValue != null then
      types.coercedTo scalar lib.singleton (types.listOf scalar)
    else
      scalar;
  keyed =
    {
      listsAsDuplicateKeys,
      listToValue,
    }:
    v: if listToValue != null then lib.mapAttrs (_: x: if lib.isList x then listToValue x else x) v else v;

  quote = builtins.toJSON;
  key = k: if builtins.match "[A-Za-z0-9_-]+" k != null then k else quote k;
  tomlValue =
    v:
    if lib.isBool v then
      lib.boolToString v
    else if lib.isList v then
      "[${lib.concatMapStringsSep ", " tomlValue v}]"
    else if lib.isAttrs v && !lib.isDerivation v then
      "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (k: x: "${key k} = ${tomlValue x}") (present v))} }"
    else if lib.isInt v || lib.isFloat v then
      builtins.toJSON v
    else
      quote "${v}";
  present = lib.filterAttrs (_: v: v != null);
  isTable = v: lib.isAttrs v && !lib.isDerivation v;
  tables = v: lib.isList v && v != [ ] && lib.all isTable v;
  tomlTable =
    path: attrs:
    let
      all = present attrs;
      plain = lib.filterAttrs (_: v: !isTable v && !tables v) all;
      nested = lib.filterAttrs (_: isTable) all;
      lists = lib.filterAttrs (_: tables) all;
      name = k: lib.concatMapStringsSep "." key (path ++ [ k ]);
    in
    lib.concatStrings (lib.mapAttrsToList (k: v: "${key k} = ${tomlValue v}\n") plain)
    + lib.concatStrings (lib.mapAttrsToList (k: v: "\n[${name k}]\n${tomlTable (path ++ [ k ]) v}") nested)
    + lib.concatStrings (
      lib.mapAttrsToList (
        k: vs: lib.concatMapStrings (v: "\n[[${name k}]]\n${tomlTable (path ++ [ k ]) v}") vs
      ) lists
    );
in
{
  formats = {
    inherit json;
    # JSON is YAML.
    yaml = json;
    yaml_1_1 = json;
    yaml_1_2 = json;
    toml = _: {
      type = types.attrsOf value;
      generate = name: v: writeText name (tomlTable [ ] v);
    };
    ini =
      {
        listsAsDuplicateKeys ? false,
        listToValue ? null,
        ...
      }@args:
      {
        type = types.attrsOf (types.attrsOf (atomType listsAsDuplicateKeys listToValue));
        generate =
          name: v:
          writeText name (
            generators.toINI (removeAttrs args [
              "listToValue"
              "atomsCoercedToLists"
            ]) (lib.mapAttrs (_: keyed { inherit listsAsDuplicateKeys listToValue; }) v)
          );
      };
    iniWithGlobalSection =
      {
        listsAsDuplicateKeys ? false,
        listToValue ? null,
        ...
      }@args:
      {
        type = types.submodule {
          options = {
            globalSection = lib.mkOption {
              type = types.attrsOf (atomType listsAsDuplicateKeys listToValue);
              default = { };
              description = "Keys before the first section.";
            };
            sections = lib.mkOption {
              type = types.attrsOf (types.attrsOf (atomType listsAsDuplicateKeys listToValue));
              default = { };
              description = "Sections.";
            };
          };
        };
        generate =
          name:
          {
            globalSection ? { },
            sections ? { },
            ...
          }:
          writeText name (
            generators.toINIWithGlobalSection (removeAttrs args [
              "listToValue"
              "atomsCoercedToLists"
            ]) { inherit globalSection sections; }
          );
      };
    gitIni = _: {
      type = types.attrsOf (types.attrsOf (types.either scalar (types.either (types.listOf scalar) (types.attrsOf scalar))));
      generate = name: v: writeText name (generators.toGitINI v);
    };
    keyValue =
      {
        listsAsDuplicateKeys ? false,
        listToValue ? null,
        ...
      }@args:
      {
        type = types.attrsOf (atomType listsAsDuplicateKeys listToValue);
        generate =
          name: v:
          writeText name (
            generators.toKeyValue (removeAttrs args [ "listToValue" ]) (
              keyed { inherit listsAsDuplicateKeys listToValue; } v
            )
          );
      };
    systemd = final.formats.ini { listsAsDuplicateKeys = true; };
    javaProperties = _: {
      type = types.attrsOf types.str;
      generate = name: v: writeText name (generators.toKeyValue { } v);
    };
  };
}
