# Options: how they are declared, how plain values merge, and what documentation shows of them.
{ lib }:
let
  inherit (builtins)
    all
    concatMap
    elemAt
    head
    isAttrs
    isList
    length
    tail
    ;
  inherit (lib) isType;

  isOption = isType "option";

  # Every attribute of an option has a reader in the documentation or in the merge.
  mkOption =
    {
      default ? null,
      defaultText ? null,
      example ? null,
      description ? null,
      relatedPackages ? null,
      type ? null,
      apply ? null,
      internal ? null,
      visible ? null,
      readOnly ? null,
    }@attrs:
    attrs // { _type = "option"; };

  literalCode =
    kind: text:
    if !builtins.isString text then
      throw "${kind} takes the text of an expression, not a ${builtins.typeOf text}"
    else
      {
        _type = kind;
        inherit text;
      };
  literalExpression = literalCode "literalExpression";

  # A path of components as people write it. Placeholders such as <name> and * stay bare.
  showOption =
    parts:
    lib.concatMapStringsSep "." (
      part:
      if part == "*" || builtins.match "<.*>" part != null then part else lib.escapeNixIdentifier part
    ) parts;

  showFiles = files: lib.concatMapStringsSep " and " (f: "`${toString f}'") files;

  showDefs =
    defs:
    lib.concatMapStrings (
      def:
      let
        # Values deep enough to recognise, short enough to read.
        shown = lib.generators.toPretty { } (
          lib.generators.withRecursion {
            depthLimit = 10;
            throwOnDepthLimit = false;
          } def.value
        );
        lines = lib.splitString "\n" shown;
        text =
          if length lines > 5 then
            lib.concatStringsSep "\n    " (lib.take 5 lines ++ [ "..." ])
          else
            lib.concatStringsSep "\n    " lines;
        attempt = builtins.tryEval (builtins.seq (builtins.stringLength text) text);
      in
      "\n- In `${toString def.file}'" + (if attempt.success then ": ${attempt.value}" else "")
    ) defs;

  resolution = "\nUse `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.";

  # Values that are all the same are one value.
  mergeEqualOption =
    loc: defs:
    if defs == [ ] then
      abort "mergeEqualOption of `${showOption loc}': there is nothing to merge"
    else
      let
        first = head defs;
      in
      if all (def: def.value == first.value) (tail defs) then
        first.value
      else
        throw "The option `${showOption loc}' has conflicting definition values:${showDefs defs}${resolution}";

  mergeUniqueOption =
    {
      message,
      merge ? null,
    }:
    loc: defs:
    if length defs == 1 then
      (if merge == null then (head defs).value else merge loc defs)
    else
      throw "The option `${showOption loc}' is defined multiple times while it's expected to be unique.\n${message}\nDefinition values:${showDefs defs}${resolution}";

  # For options without a type of their own: lists and strings join, sets unite, the rest must agree.
  mergeDefaultOption =
    loc: defs:
    let
      values = map (def: def.value) defs;
    in
    if length values == 1 then
      head values
    else if all builtins.isFunction values then
      x: mergeDefaultOption loc (map (def: def // { value = def.value x; }) defs)
    else if all isList values then
      builtins.concatLists values
    else if all isAttrs values then
      builtins.foldl' lib.mergeAttrs { } values
    else if all builtins.isBool values then
      builtins.any lib.id values
    else if all builtins.isString values then
      lib.concatStrings values
    else if all builtins.isInt values && all (x: x == head values) values then
      head values
    else
      throw "Cannot merge definitions of `${showOption loc}'. Definition values:${showDefs defs}";

  mkPackageOption =
    pkgs: name:
    {
      nullable ? false,
      default ? name,
      example ? null,
      extraDescription ? "",
      pkgsText ? "pkgs",
    }:
    let
      names = if isList name then name else [ name ];
      path = if isList default then default else [ default ];
      inPkgs = parts: lib.concatStringsSep "." ([ pkgsText ] ++ map lib.escapeNixIdentifier parts);
      missing = throw "${inPkgs path} cannot be found in ${pkgsText}";
      hasDefault = default != null;
      noun = lib.last names;
    in
    mkOption (
      {
        description = "The ${noun} package to use.${
          lib.optionalString (extraDescription != "") " ${extraDescription}"
        }";
        type = if nullable then lib.types.nullOr lib.types.package else lib.types.package;
      }
      // lib.optionalAttrs hasDefault {
        default = lib.attrByPath path missing pkgs;
        defaultText = literalExpression (inPkgs path);
      }
      // lib.optionalAttrs (nullable && !hasDefault) { default = null; }
      // lib.optionalAttrs (example != null) {
        example = literalExpression (if isList example then inPkgs example else example);
      }
    );

  # What the documentation knows of each option: a flat list.
  docsOf =
    _: options:
    concatMap (
      opt:
      let
        name = showOption opt.loc;
        doc = {
          inherit (opt) loc;
          inherit name;
          description = opt.description or null;
          declarations = builtins.filter (file: file != lib.unknownModule) opt.declarations;
          internal = opt.internal or false;
          visible = opt.visible or true != false && opt.visible or true != "transparent";
          readOnly = opt.readOnly or false;
          type = opt.type.description or "unspecified";
        }
        // lib.optionalAttrs (opt ? example) {
          example = builtins.addErrorContext "while evaluating the example of option `${name}'" (
            renderOptionValue opt.example
          );
        }
        //
          lib.optionalAttrs
            (
              !(opt ? defaultText || opt ? default)
              && opt.type.emptyValue or { } ? value
              && !(opt.type.emptyValue ? merged)
            )
            {
              default = renderOptionValue opt.type.emptyValue.value;
            }
        // lib.optionalAttrs (opt ? defaultText || opt ? default) {
          default = builtins.addErrorContext "while evaluating the ${
            if opt ? defaultText then "defaultText" else "default value"
          } of option `${name}'" (renderOptionValue (opt.defaultText or opt.default));
        }
        // lib.optionalAttrs (opt.relatedPackages or null != null) { inherit (opt) relatedPackages; };
        subs =
          let
            below = opt.type.getSubOptions opt.loc;
          in
          if below == { } then [ ] else docsOf null below;
        shownBelow = opt.visible or true == true || opt.visible or true == "transparent";
      in
      [ doc ] ++ lib.optionals shownBelow subs
    ) (lib.collect isOption options);

  renderOptionValue =
    value:
    if value ? _type && value ? text then
      value
    else
      literalExpression (
        lib.generators.toPretty {
          multiline = true;
          allowPrettyValues = true;
        } value
      );

  scrubOptionValue =
    x:
    if lib.isDerivation x then
      x
      // {
        drvPath = x.name;
        outPath = x.name;
      }
    else if isList x then
      map scrubOptionValue x
    else if isAttrs x then
      builtins.mapAttrs (_: scrubOptionValue) (removeAttrs x [ "_args" ])
    else
      x;
in
{
  inherit
    isOption
    mkOption
    literalCode
    literalExpression
    showOption
    showFiles
    showDefs
    mergeEqualOption
    mergeUniqueOption
    mergeDefaultOption
    mkPackageOption
    renderOptionValue
    scrubOptionValue
    ;

  literalMD = text: {
    _type = "literalMD";
    inherit text;
  };
  unknownModule = "<unknown-file>";
  mkEnableOption =
    name:
    mkOption {
      default = false;
      example = true;
      description =
        if name ? _type && name._type == "mdDoc" then
          "Whether to enable ${name.text}."
        else
          "Whether to enable ${name}.";
      type = lib.types.bool;
    };
  mkSinkUndeclaredOptions =
    attrs:
    mkOption (
      {
        internal = true;
        visible = false;
        default = false;
        description = "Takes definitions of options that nobody declares.";
        type = lib.mkOptionType {
          name = "sink";
          check = _: true;
          merge = _: _: false;
        };
      }
      // attrs
    );
  mergeOneOption = mergeUniqueOption { message = ""; };
  getValues = map (x: x.value);
  getFiles = map (x: x.file);
  showOptionWithDefLocs =
    option:
    "${showOption option.loc}, with values defined in:\n${
      lib.concatMapStringsSep "\n" (f: "  - ${toString f}") option.files
    }\n";
  optionAttrSetToDocList = docsOf null;
  optionAttrSetToDocList' = docsOf;
}
