# The reference page of the codchi.* options.
{ lib }:
let
  inherit (lib)
    attrNames
    concatMapStringsSep
    concatStringsSep
    hasPrefix
    replaceStrings
    removeSuffix
    ;

  # Options below a place in the tree, as a flat list in the order of their names; sub-options follow their option.
  flatten =
    tree:
    lib.concatMap (
      name:
      let
        node = tree.${name};
      in
      if hasPrefix "_" name || !(builtins.isAttrs node) then
        [ ]
      else if (node._type or null) == "option" then
        if node.internal or false || node.visible or true == false then
          [ ]
        else
          [ node ] ++ flatten (node.type.getSubOptions node.loc)
      else
        flatten node
    ) (attrNames tree);

  indent = depth: lib.concatStrings (lib.genList (_: "  ") depth);
  isName = name: builtins.match "[A-Za-z_][A-Za-z0-9_'-]*" name != null;
  attribute = name: if isName name then name else builtins.toJSON name;

  # Text of a Nix value, one element per line where there are several.
  show =
    depth: value:
    let
      inner = indent (depth + 1);
      lines = items: "\n${concatStringsSep "\n" items}\n${indent depth}";
    in
    if builtins.isAttrs value && (value._type or null) != null then
      value.text
    else if builtins.isAttrs value then
      if value == { } then
        "{ }"
      else
        "{${
          lines (
            map (name: "${inner}${attribute name} = ${show (depth + 1) value.${name}};") (attrNames value)
          )
        }}"
    else if builtins.isList value then
      if value == [ ] then "[ ]" else "[ ${concatMapStringsSep " " (show (depth + 1)) value} ]"
    else if builtins.isString value && lib.hasInfix "\n" value then
      "''${lines (map (line: "${inner}${line}") (lib.splitString "\n" (removeSuffix "\n" value)))}''"
    else if value == null then
      "null"
    else if builtins.isPath value then
      toString value
    else
      builtins.toJSON value;

  isMarkdown = value: builtins.isAttrs value && (value._type or null) == "mdDoc";

  # A short value in the line, a long one as a block; text stays text.
  field =
    label: value:
    let
      text = show 0 value;
    in
    if isMarkdown value then
      "${label}: ${value.text}\n\n"
    else if lib.hasInfix "\n" text then
      "${label}:\n\n```nix\n${text}\n```\n\n"
    else
      "${label}: `${text}`\n\n";

  path = loc: concatMapStringsSep "." (name: if hasPrefix "<" name then name else attribute name) loc;

  describe =
    option:
    if !(option ? description) then
      throw "codchi: option ${path option.loc} has no description"
    else
      let
        text = option.description;
      in
      removeSuffix "\n" (if isMarkdown text then text.text else text);

  # An option that must be set has no default; one that needs no example is the only kind without.
  entry =
    option:
    "## `${replaceStrings [ "`" ] [ "'" ] (path option.loc)}`\n\n"
    + "${describe option}\n\n"
    + "Type: ${option.type.description}\n\n"
    + (
      if option ? defaultText then
        field "Default" option.defaultText
      else if option ? default then
        field "Default" option.default
      else
        ""
    )
    + (if option ? example then field "Example" option.example else "");

  # Only the declarations are looked at, so nothing of NixOS has to be there.
  inherit
    (lib.evalModules {
      modules = [
        ../modules
        {
          _module = {
            check = false;
            args.pkgs = throw "codchi: an option's documentation needs a package; give it a defaultText";
          };
        }
      ];
    })
    options
    ;
in
{
  # The page as Markdown. Internal options are left out; an option without description is an error.
  page =
    "# Options\n\nWhat a module can set below `codchi`, beside all of NixOS. This page is generated.\n\n"
    + removeSuffix "\n" (lib.concatMapStrings entry (flatten options.codchi));

  # Options that lack something a reader needs, as messages; [ ] when all is well.
  gaps = lib.concatMap (
    option:
    map (what: "${path option.loc} has no ${what}") (
      lib.filter (what: !(option ? ${what})) [
        "type"
        "description"
        "example"
      ]
    )
  ) (flatten options.codchi);
}
