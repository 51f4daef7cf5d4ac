# Configuration file formats out of Nix values.
{ lib }:
let
  inherit (builtins)
    attrNames
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    typeOf
    ;

  mkLuaInline = expr: {
    _type = "lua-inline";
    inherit expr;
  };

  mkValueStringDefault =
    { }:
    v:
    let
      no = what: throw "generators.mkValueStringDefault: ${what} not supported: ${toPretty { } v}";
    in
    if isInt v then
      toString v
    else if isString v then
      v
    else if isBool v then
      lib.boolToString v
    else if v == null then
      "null"
    else if lib.isDerivation v || isPath v then
      toString v
    else if isFloat v then
      lib.floatToString v
    else if isAttrs v && v ? __toString then
      toString v
    else
      no "this value (a ${typeOf v}) is";

  mkKeyValueDefault =
    {
      mkValueString ? mkValueStringDefault { },
    }:
    sep: k: v:
    "${lib.escape [ sep ] k}${sep}${mkValueString v}";

  toKeyValue =
    {
      mkKeyValue ? mkKeyValueDefault { } "=",
      listsAsDuplicateKeys ? false,
      indent ? "",
    }:
    set:
    let
      line = k: v: indent + mkKeyValue k v + "\n";
      lines = k: v: map (line k) (if listsAsDuplicateKeys && isList v then v else [ v ]);
    in
    lib.concatStrings (lib.concatLists (lib.mapAttrsToList lines set));

  toINI =
    {
      mkSectionName ? lib.strings.escape [
        "["
        "]"
      ],
      mkKeyValue ? mkKeyValueDefault { } "=",
      listsAsDuplicateKeys ? false,
    }:
    sections:
    lib.concatStringsSep "\n" (
      lib.mapAttrsToList (
        name: values:
        "[${mkSectionName name}]\n" + toKeyValue { inherit mkKeyValue listsAsDuplicateKeys; } values
      ) sections
    );

  toINIWithGlobalSection =
    options:
    {
      globalSection,
      sections ? { },
    }:
    (
      if globalSection == { } then
        ""
      else
        toKeyValue (removeAttrs options [ "mkSectionName" ]) globalSection + "\n"
    )
    + toINI options sections;

  # Git's own kind of INI: sections with subsections, values quoted where needed.
  toGitINI =
    set:
    let
      sectionName =
        path:
        let
          sub = lib.concatStringsSep "." (lib.tail path);
        in
        if lib.tail path == [ ] then
          lib.head path
        else
          ''${lib.head path} "${lib.escape [ "\\" "\"" ] sub}"'';
      value =
        v:
        let
          escaped = lib.replaceStrings [ "\\" "\"" "\n" "\t" ] [ "\\\\" "\\\"" "\\n" "\\t" ] v;
        in
        if isString v then ''"${escaped}"'' else mkValueStringDefault { } v;
      entry = k: v: "\t${k} = ${value v}\n";
      flatten =
        path: x:
        if isAttrs x && !lib.isDerivation x then
          lib.concatLists (lib.mapAttrsToList (n: flatten (path ++ [ n ])) x)
        else
          [
            {
              section = lib.init path;
              key = lib.last path;
              value = x;
            }
          ];
      entries = flatten [ ] set;
      bySection = lib.groupBy (e: sectionName e.section) entries;
    in
    lib.concatStringsSep "\n" (
      lib.mapAttrsToList (
        name: es:
        "[${name}]\n" + lib.concatStrings (lib.concatMap (e: map (entry e.key) (lib.toList e.value)) es)
      ) bySection
    );

  mkDconfKeyValue = mkKeyValueDefault { mkValueString = v: toString (lib.gvariant.mkValue v); } "=";

  withRecursion =
    {
      depthLimit,
      throwOnDepthLimit ? true,
    }:
    assert isInt depthLimit;
    let
      special = [
        "__functor"
        "__functionArgs"
        "__toString"
        "__pretty"
      ];
      cut =
        depth: v:
        if depth > depthLimit || depth == depthLimit && !isAttrs v && !isList v then
          if throwOnDepthLimit then
            throw "Exceeded maximum eval-depth limit of ${toString depthLimit} while trying to evaluate with `generators.withRecursion'!"
          else
            "<unevaluated>"
        else if isAttrs v then
          lib.mapAttrs (name: x: if lib.elem name special then x else cut (depth + 1) x) v
        else if isList v then
          map (cut (depth + 1)) v
        else
          v;
      start =
        v:
        # Names of special attributes keep their meaning at every depth.
        cut 0 v;
    in
    start;

  toPretty =
    {
      multiline ? true,
      allowPrettyValues ? false,
      indent ? "",
    }:
    let
      go =
        indent: v:
        let
          start = if multiline then "\n${indent}  " else " ";
          end = if multiline then "\n${indent}" else " ";
          # Text of several lines reads best as such.
          lines = lib.splitString "\n" v;
          escapeLine = lib.replaceStrings [ "''" "\${" ] [ "'''" "''\${" ];
          long =
            "''"
            + start
            + lib.concatStringsSep start (map escapeLine (lib.init lines))
            + (if lib.last lines == "" then end else start + escapeLine (lib.last lines))
            + "''";
          args = lib.functionArgs v;
          shownArgs = lib.concatStringsSep ", " (
            lib.mapAttrsToList (n: optional: if optional then "${n}?" else n) args
          );
        in
        if isInt v then
          toString v
        else if isFloat v then
          builtins.toJSON v
        else if isString v then
          if multiline && lib.hasInfix "\n" v then long else lib.escapeNixString v
        else if v == true then
          "true"
        else if v == false then
          "false"
        else if v == null then
          "null"
        else if isPath v then
          toString v
        else if isList v then
          if v == [ ] then
            "[ ]"
          else
            "[" + start + lib.concatMapStringsSep start (go (indent + "  ")) v + end + "]"
        else if lib.isFunction v then
          if args == { } then "<function>" else "<function, args: {${shownArgs}}>"
        else if isAttrs v then
          if allowPrettyValues && v ? __pretty && v ? val then
            v.__pretty v.val
          else if v == { } then
            "{ }"
          else if lib.isDerivation v then
            "<derivation ${v.name or "???"}>"
          else
            "{"
            + start
            + lib.concatStringsSep start (
              lib.mapAttrsToList (
                name: value:
                "${lib.escapeNixIdentifier name} = ${
                  builtins.addErrorContext "while evaluating an attribute `${name}`" (go (indent + "  ") value)
                };"
              ) v
            )
            + end
            + "}"
        else
          throw "generators.toPretty: cannot show a ${typeOf v}";
    in
    go indent;

  toPlist =
    {
      escape ? false,
    }:
    v:
    let
      text = if escape then lib.escapeXML else lib.id;
      tag = name: body: "<${name}>${body}</${name}>";
      go =
        ind: x:
        if x == null then
          ""
        else if isBool x then
          ind + (if x then "<true/>" else "<false/>")
        else if isInt x then
          ind + tag "integer" (toString x)
        else if isString x then
          ind + tag "string" (text x)
        else if isPath x then
          ind + tag "string" (text (toString x))
        else if isFloat x then
          ind + tag "real" (toString x)
        else if isList x then
          lib.concatStringsSep "\n" ([
            "${ind}<array>"
            (lib.concatStringsSep "\n" (map (go "${ind}\t") x))
            "${ind}</array>"
          ])
        else if isAttrs x then
          lib.concatStringsSep "\n" ([
            "${ind}<dict>"
            (lib.concatStringsSep "\n" (
              lib.concatLists (
                lib.mapAttrsToList (
                  k: y:
                  lib.optionals (y != null) [
                    "${ind}\t${tag "key" (text k)}"
                    (go "${ind}\t" y)
                  ]
                ) x
              )
            ))
            "${ind}</dict>"
          ])
        else
          throw "generators.toPlist: cannot write a ${typeOf x}";
    in
    ''
      <?xml version="1.0" encoding="UTF-8"?>
      <!DOCTYPE plist PUBLIC "-//Apple Computer//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
      <plist version="1.0">
      ${go "" v}
      </plist>'';

  toLua =
    {
      multiline ? true,
      indent ? "",
      asBindings ? false,
    }@args:
    v:
    let
      inner = "${indent}  ";
      nested = args // {
        indent = if asBindings then indent else inner;
        asBindings = false;
      };
      sep = if multiline then ",\n${inner}" else ", ";
      wrap = body: if multiline then "{\n${inner}${body}\n${indent}}" else "{ ${body} }";
      isInline = v._type or null == "lua-inline";
      key = name: "[${builtins.toJSON name}]";
    in
    if asBindings then
      lib.concatStrings (
        lib.mapAttrsToList (
          name: value:
          if builtins.match "[a-zA-Z_][a-zA-Z0-9_]*(\\.[a-zA-Z_][a-zA-Z0-9_]*)*" name == null then
            throw "generators.toLua: `${name}' cannot be bound in Lua"
          else
            "${indent}${name} = ${toLua nested value}\n"
        ) v
      )
    else if v == null then
      "nil"
    else if isInt v || isFloat v || isString v || isBool v then
      builtins.toJSON v
    else if isPath v || lib.isDerivation v then
      builtins.toJSON "${v}"
    else if isList v then
      if v == [ ] then "{}" else wrap (lib.concatMapStringsSep sep (toLua nested) v)
    else if isAttrs v then
      if isInline then
        "(${v.expr})"
      else if v == { } then
        "{}"
      else
        wrap (lib.concatStringsSep sep (lib.mapAttrsToList (name: x: "${key name} = ${toLua nested x}") v))
    else
      throw "generators.toLua: type ${typeOf v} is unsupported";

  toDhall =
    { }@args:
    v:
    if isAttrs v then
      if lib.isDerivation v then
        "\"${toString v}\""
      else
        "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (k: x: "${k} = ${toDhall args x}") v)} }"
    else if isList v then
      "[ ${lib.concatMapStringsSep ", " (toDhall args) v} ]"
    else if isInt v then
      "${if v < 0 then "" else "+"}${toString v}"
    else if isBool v then
      (if v then "True" else "False")
    else if isFunction v then
      throw "generators.toDhall: cannot convert a function to Dhall"
    else if v == null then
      throw "generators.toDhall: cannot convert a null to Dhall"
    else
      builtins.toJSON v;
in
{
  inherit
    mkLuaInline
    mkValueStringDefault
    mkKeyValueDefault
    toKeyValue
    toINI
    toINIWithGlobalSection
    toGitINI
    mkDconfKeyValue
    withRecursion
    toPretty
    toPlist
    toLua
    toDhall
    ;
  toDconfINI = toINI { mkKeyValue = mkDconfKeyValue; };
  toJSON = { }: builtins.toJSON;
  # JSON is YAML.
  toYAML = { }: builtins.toJSON;
}
