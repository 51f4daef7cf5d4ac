# Option types: what a value must look like and how several definitions become one.
#
# A type's `merge` is a function of the location and the definitions. Types that hold other types
# have `merge.v2` as well: it takes `{ loc; defs; }` and gives `{ headError; value; valueMeta; }`,
# so that a value is checked and merged in one pass.
{ lib }:
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatMap
    elem
    elemAt
    filter
    foldl'
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    mapAttrs
    match
    tail
    typeOf
    zipAttrsWith
    ;
  inherit (lib)
    concatMapStringsSep
    isStringLike
    mergeEqualOption
    mergeOneOption
    mkOption
    showDefs
    showFiles
    showOption
    ;
  inherit (lib.modules) checkAndMerge checkDefs mergeDefinitions;

  isType = tag: x: x._type or null == tag;
  setType = tag: set: set // { _type = tag; };
  isOptionType = isType "option-type";

  defaultFunctor = name: {
    inherit name;
    type = lib.types.${name} or null;
    wrapped = null;
    payload = null;
    binOp = _: _: null;
  };

  # Two types are one when their functors agree on the name and can join what they carry.
  defaultTypeMerge =
    f: f':
    if f.name != f'.name then
      null
    else if f.payload or null != null then
      if f'.payload or null == null then
        null
      else
        let
          joined = f.binOp f.payload f'.payload;
        in
        if joined == null then null else f.type joined
    else if f'.payload or null != null then
      null
    else if f.wrapped or null != null then
      if f'.wrapped or null == null then
        null
      else
        let
          joined = f.wrapped.typeMerge f'.wrapped.functor;
        in
        if joined == null then null else f.type joined
    else
      f.type;

  mkOptionType =
    {
      name,
      description ? null,
      # "noun", "nonRestrictiveClause", "conjunction" or "composite": how it reads in a longer description.
      descriptionClass ? null,
      check ? _: true,
      merge ? lib.mergeDefaultOption,
      emptyValue ? { },
      getSubOptions ? _: { },
      getSubModules ? null,
      substSubModules ? _: null,
      typeMerge ? defaultTypeMerge functor,
      functor ? defaultFunctor name,
      deprecationMessage ? null,
      nestedTypes ? { },
    }:
    {
      _type = "option-type";
      inherit
        name
        check
        merge
        emptyValue
        getSubOptions
        getSubModules
        substSubModules
        typeMerge
        deprecationMessage
        nestedTypes
        descriptionClass
        ;
      functor =
        if functor ? wrappedDeprecationMessage then
          functor
          // {
            wrapped = functor.wrappedDeprecationMessage { inherit name; } functor.wrapped;
          }
        else
          functor;
      description = if description == null then name else description;
    };

  phrase =
    plain: type:
    if plain (type.descriptionClass or null) then
      type.description or type.name
    else
      "(${type.description or type.name})";
  nounOrClause =
    class:
    elem class [
      "noun"
      "nonRestrictiveClause"
    ];
  nounOrComposite =
    class:
    elem class [
      "noun"
      "composite"
    ];

  # Marks a check that belongs to a v2 merge, so that one laid over it by `//` is noticed.
  v2Check = check: {
    v2 = true;
    __functor = _: check;
  };

  # A type of values that are simply equal or in conflict.
  plain =
    name: description: check:
    mkOptionType {
      inherit name description check;
      descriptionClass = "noun";
      merge = mergeEqualOption;
    };

  # Carries one element type: joins when the element types join.
  elemFunctor =
    name: type: elemType:
    defaultFunctor name
    // {
      wrapped = elemType;
      inherit type;
      payload = { inherit elemType; };
      binOp =
        a: b:
        let
          joined = a.elemType.typeMerge b.elemType.functor;
        in
        if joined == null then null else { elemType = joined; };
    };

  v2Merge = v2: {
    inherit v2;
    __functor =
      _: loc: defs:
      (v2 { inherit loc defs; }).value;
  };

  # The value of a nested merge, or its error.
  valueOf = evaluated: evaluated.mergedValue;

  attrsWith =
    {
      elemType,
      lazy ? false,
      placeholder ? "name",
    }@payload:
    let
      name = if lazy then "lazyAttrsOf" else "attrsOf";
      check = v2Check isAttrs;
    in
    mkOptionType {
      inherit name check;
      description = "${if lazy then "lazy " else ""}attribute set of ${phrase nounOrComposite elemType}";
      descriptionClass = "composite";
      merge = v2Merge (
        { loc, defs }:
        let
          evaluated = zipAttrsWith (name: mergeDefinitions (loc ++ [ name ]) elemType) (
            map (
              def:
              mapAttrs (_: value: {
                inherit (def) file;
                inherit value;
              }) def.value
            ) defs
          );
          kept = if lazy then evaluated else lib.filterAttrs (_: e: e.isDefined) evaluated;
        in
        {
          headError = checkDefs isAttrs loc defs;
          value = mapAttrs (_: valueOf) kept;
          valueMeta.attrs = mapAttrs (_: e: e.valueMeta) kept;
        }
      );
      emptyValue.value = { };
      getSubOptions = prefix: elemType.getSubOptions (prefix ++ [ "<${placeholder}>" ]);
      getSubModules = elemType.getSubModules;
      substSubModules = m: attrsWith (payload // { elemType = elemType.substSubModules m; });
      functor = defaultFunctor "attrsWith" // {
        wrapped = elemType;
        type = attrsWith;
        payload = { inherit elemType lazy placeholder; };
        binOp =
          a: b:
          let
            joined = a.elemType.typeMerge b.elemType.functor;
            name =
              if a.placeholder == b.placeholder then
                a.placeholder
              else if a.placeholder == "name" then
                b.placeholder
              else if b.placeholder == "name" then
                a.placeholder
              else
                null;
          in
          if joined == null || a.lazy != b.lazy || name == null then
            null
          else
            {
              elemType = joined;
              inherit (a) lazy;
              placeholder = name;
            };
      };
      nestedTypes.elemType = elemType;
    };

  listOf =
    elemType:
    mkOptionType {
      name = "listOf";
      description = "list of ${phrase nounOrComposite elemType}";
      descriptionClass = "composite";
      check = v2Check isList;
      merge = v2Merge (
        { loc, defs }:
        let
          evaluated = filter (e: e.isDefined) (
            concatLists (
              lib.imap1 (
                n: def:
                lib.imap1 (
                  m: value:
                  mergeDefinitions (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ]) elemType [
                    {
                      inherit (def) file;
                      inherit value;
                    }
                  ]
                ) def.value
              ) defs
            )
          );
        in
        {
          headError = checkDefs isList loc defs;
          value = map valueOf evaluated;
          valueMeta.list = map (e: e.valueMeta) evaluated;
        }
      );
      emptyValue.value = [ ];
      getSubOptions = prefix: elemType.getSubOptions (prefix ++ [ "*" ]);
      getSubModules = elemType.getSubModules;
      substSubModules = m: listOf (elemType.substSubModules m);
      functor = elemFunctor "listOf" (payload: listOf payload.elemType) elemType;
      nestedTypes.elemType = elemType;
    };

  submoduleWith =
    {
      modules,
      specialArgs ? { },
      shorthandOnlyDefinesConfig ? false,
      description ? null,
      class ? null,
    }@payload:
    let
      asModule =
        { file, value }:
        if isAttrs value && shorthandOnlyDefinesConfig == true then
          {
            _file = file;
            config = value;
          }
        else
          lib.modules.setDefaultModuleLocation file value;

      base = lib.evalModules {
        inherit class specialArgs;
        modules = [
          {
            # Before a definition has given the name, as in documentation.
            _module.args.name = lib.mkOptionDefault "‹name›";
          }
        ]
        ++ modules;
      };
      inherit (base._module) freeformType;

      isModule = x: isAttrs x || isFunction x || lib.types.path.check x;
    in
    mkOptionType {
      name = "submodule";
      description =
        if description != null then
          description
        else if freeformType != null then
          "open submodule of ${phrase nounOrComposite freeformType}"
        else
          "submodule";
      check = v2Check isModule;
      merge = v2Merge (
        { loc, defs }:
        let
          configuration = base.extendModules {
            modules = [
              { _module.args.name = lib.last loc; }
            ]
            ++ map (def: asModule { inherit (def) file value; }) defs;
            prefix = loc;
          };
        in
        {
          headError = checkDefs isModule loc defs;
          value = configuration.config;
          valueMeta = { inherit configuration; };
        }
      );
      # Nothing defined is a submodule of its defaults, at its own place.
      emptyValue = {
        value = { };
        merged = true;
      };
      getSubOptions =
        prefix:
        (base.extendModules { inherit prefix; }).options
        // lib.optionalAttrs (freeformType != null) {
          # A name that no option has: only documentation looks here.
          _freeformOptions = freeformType.getSubOptions prefix;
        };
      getSubModules = modules;
      substSubModules = m: submoduleWith (payload // { modules = m; });
      nestedTypes = lib.optionalAttrs (freeformType != null) { inherit freeformType; };
      functor = defaultFunctor "submodule" // {
        type = submoduleWith;
        payload = {
          inherit
            modules
            class
            specialArgs
            shorthandOnlyDefinesConfig
            description
            ;
        };
        binOp =
          a: b:
          let
            either =
              what: x: y:
              if x == null then
                y
              else if y == null || x == y then
                x
              else
                throw "A submoduleWith option is declared multiple times with ${what}";
          in
          {
            modules = a.modules ++ b.modules;
            specialArgs =
              let
                both = builtins.intersectAttrs a.specialArgs b.specialArgs;
              in
              if both == { } then
                a.specialArgs // b.specialArgs
              else
                throw "A submoduleWith option is declared multiple times with the same specialArgs \"${toString (attrNames both)}\"";
            class =
              either "conflicting class values \"${toString a.class}\" and \"${toString b.class}\"." a.class
                b.class;
            shorthandOnlyDefinesConfig =
              either "conflicting shorthandOnlyDefinesConfig values" a.shorthandOnlyDefinesConfig
                b.shorthandOnlyDefinesConfig;
            description = either "conflicting descriptions" a.description b.description;
          };
      };
    };

  deferredModuleWith =
    {
      staticModules ? [ ],
    }:
    mkOptionType {
      name = "deferredModule";
      description = "module";
      descriptionClass = "noun";
      check = x: isAttrs x || isFunction x || lib.types.path.check x;
      merge = loc: defs: {
        imports =
          staticModules
          ++ map (
            def:
            lib.modules.setDefaultModuleLocation "${toString def.file}, via option ${showOption loc}" def.value
          ) defs;
      };
      getSubOptions = (submoduleWith { modules = staticModules; }).getSubOptions;
      getSubModules = staticModules;
      substSubModules = m: deferredModuleWith { staticModules = m; };
      functor = defaultFunctor "deferredModuleWith" // {
        type = deferredModuleWith;
        payload = { inherit staticModules; };
        binOp = a: b: { staticModules = a.staticModules ++ b.staticModules; };
      };
    };

  either =
    t1: t2:
    mkOptionType {
      name = "either";
      description =
        let
          left = phrase (class: nounOrClause class || class == "conjunction") t1;
          right = phrase (class: nounOrClause class || class == "conjunction" || class == "composite") t2;
        in
        "${left}${if t1.descriptionClass or null == "nonRestrictiveClause" then "," else ""} or ${right}";
      descriptionClass = "conjunction";
      check = v2Check (x: t1.check x || t2.check x);
      merge =
        let
          v2 =
            { loc, defs }:
            let
              first = checkAndMerge loc t1 defs;
              second = checkAndMerge loc t2 defs;
            in
            if first.headError == null then
              first
            else if second.headError == null then
              second
            else
              second
              // {
                headError = checkDefs (x: t1.check x || t2.check x) loc defs;
                value = lib.warn ''
                  One or more definitions did not pass the type-check of the 'either' type.
                  Definitions of `${showOption loc}':${showDefs defs}
                  Make sure that the type wraps what it is meant for: a freeformType is usually `attrsOf (either t1 t2)`.
                '' (mergeOneOption loc defs);
              };
        in
        v2Merge v2;
      typeMerge =
        f':
        let
          left = t1.typeMerge (elemAt f'.payload.elemType 0).functor;
          right = t2.typeMerge (elemAt f'.payload.elemType 1).functor;
        in
        if f'.name == "either" && left != null && right != null then either left right else null;
      functor = defaultFunctor "either" // {
        wrapped = [
          t1
          t2
        ];
        type = payload: either (head payload.elemType) (elemAt payload.elemType 1);
        payload.elemType = [
          t1
          t2
        ];
        binOp = _: _: null;
      };
      nestedTypes = {
        left = t1;
        right = t2;
      };
    };

  coercedTo =
    from: coerce: to:
    assert lib.assertMsg (
      from.getSubModules == null
    ) "coercedTo: the type to coerce from must not have submodules, but `${from.description}' has";
    mkOptionType {
      name = "coercedTo";
      description = "${phrase nounOrClause to} or ${
        phrase (class: class == "noun") from
      } convertible to it";
      check = v2Check (x: (from.check x && to.check (coerce x)) || to.check x);
      merge = v2Merge (
        { loc, defs }:
        let
          convert =
            def:
            let
              merged = mergeDefinitions loc from [ def ];
            in
            if from.merge ? v2 then
              let
                r = checkAndMerge loc from [ def ];
              in
              if r.headError == null then def // { value = coerce r.value; } else def
            else if from.check def.value then
              def // { value = coerce merged.mergedValue; }
            else
              def;
        in
        let
          result = checkAndMerge loc to (map convert defs);
        in
        # The person knows the value as written, not as converted.
        if result.headError == null then
          result
        else
          result // { headError.message = "Definition values:${showDefs defs}"; }
      );
      inherit (to)
        emptyValue
        getSubOptions
        getSubModules
        ;
      substSubModules = m: coercedTo from coerce (to.substSubModules m);
      typeMerge = _: null;
      functor = defaultFunctor "coercedTo" // {
        wrapped = to;
      };
      nestedTypes = {
        coercedType = from;
        finalType = to;
      };
    };

  nullOr =
    elemType:
    mkOptionType {
      name = "nullOr";
      description = "null or ${phrase (class: nounOrClause class || class == "conjunction") elemType}";
      descriptionClass = "conjunction";
      check = v2Check (x: x == null || elemType.check x);
      merge = v2Merge (
        { loc, defs }:
        let
          nulls = lib.count (def: def.value == null) defs;
        in
        if nulls == length defs then
          {
            headError = null;
            value = null;
            valueMeta = { };
          }
        else if nulls != 0 then
          {
            headError.message = "It is defined both null and not null, in ${showFiles (lib.getFiles defs)}.";
            value = throw "The option `${showOption loc}' is defined both null and not null, in ${showFiles (lib.getFiles defs)}.";
            valueMeta = { };
          }
        else
          checkAndMerge loc elemType defs
      );
      emptyValue.value = null;
      inherit (elemType) getSubOptions getSubModules;
      substSubModules = m: nullOr (elemType.substSubModules m);
      functor = elemFunctor "nullOr" (payload: nullOr payload.elemType) elemType;
      nestedTypes.elemType = elemType;
    };

  functionTo =
    elemType:
    mkOptionType {
      name = "functionTo";
      description = "function that evaluates to a(n) ${phrase nounOrComposite elemType}";
      descriptionClass = "composite";
      check = lib.isFunction;
      merge =
        loc: defs:
        let
          bodies =
            x:
            map (def: {
              inherit (def) file;
              value = def.value x;
            }) defs;
        in
        lib.setFunctionArgs (
          x: (mergeDefinitions (loc ++ [ "<function body>" ]) elemType (bodies x)).mergedValue
        ) (zipAttrsWith (_: all lib.id) (map (def: lib.functionArgs def.value) defs));
      getSubOptions = prefix: elemType.getSubOptions (prefix ++ [ "<function body>" ]);
      getSubModules = elemType.getSubModules;
      substSubModules = m: functionTo (elemType.substSubModules m);
      functor = elemFunctor "functionTo" (payload: functionTo payload.elemType) elemType;
      nestedTypes.elemType = elemType;
    };

  unique =
    { message }:
    type:
    mkOptionType {
      name = "unique";
      inherit (type)
        description
        descriptionClass
        emptyValue
        getSubOptions
        getSubModules
        ;
      check = if type.merge ? v2 then v2Check type.check else type.check;
      merge =
        if type.merge ? v2 then
          v2Merge (
            { loc, defs }:
            if length defs == 1 then
              checkAndMerge loc type defs
            else
              {
                headError = null;
                value = lib.mergeUniqueOption { inherit message; } loc defs;
                valueMeta = { };
              }
          )
        else
          lib.mergeUniqueOption {
            inherit message;
            inherit (type) merge;
          };
      substSubModules = m: unique { inherit message; } (type.substSubModules m);
      functor = elemFunctor "unique" (payload: unique { inherit message; } payload.elemType) type;
      nestedTypes.elemType = type;
    };

  enum =
    values:
    let
      show =
        v:
        if isString v then
          ''"${v}"''
        else if isInt v then
          toString v
        else if isBool v then
          lib.boolToString v
        else
          "<${typeOf v}>";
    in
    mkOptionType {
      name = "enum";
      description =
        if values == [ ] then
          "impossible (empty enum)"
        else if length values == 1 then
          "value ${show (head values)} (singular enum)"
        else
          "one of ${concatMapStringsSep ", " show values}";
      descriptionClass = if length values < 2 then "noun" else "conjunction";
      check = x: elem x values;
      merge = mergeEqualOption;
      functor = defaultFunctor "enum" // {
        type = payload: enum payload.values;
        payload = { inherit values; };
        binOp = a: b: { values = lib.unique (a.values ++ b.values); };
      };
    };

  separatedString =
    sep:
    mkOptionType {
      name = "separatedString";
      description =
        if sep == "" then "Concatenated string" else "strings concatenated with ${builtins.toJSON sep}";
      descriptionClass = "noun";
      check = isString;
      merge = _: defs: lib.concatStringsSep sep (lib.getValues defs);
      functor = defaultFunctor "separatedString" // {
        type = payload: separatedString payload.sep;
        payload = { inherit sep; };
        binOp = a: b: if a.sep == b.sep then { inherit (a) sep; } else null;
      };
    };

  addCheck =
    type: check:
    if type.merge ? v2 then
      type
      // {
        check = v2Check (x: type.check x && check x);
        merge = v2Merge (
          { loc, defs }:
          let
            inner = checkAndMerge loc type defs;
          in
          if inner.headError != null then inner else inner // { headError = checkDefs check loc defs; }
        );
      }
    else
      type // { check = x: type.check x && check x; };

  str = plain "str" "string" isString;
  int = plain "int" "signed integer" isInt;
  float = plain "float" "floating point number" isFloat;

  between =
    lowest: highest:
    assert lib.assertMsg (lowest <= highest) "ints.between: the lowest value is above the highest";
    addCheck int (x: x >= lowest && x <= highest)
    // {
      name = "intBetween";
      description = "integer between ${betweenText lowest highest}";
    };
  betweenText = lowest: highest: "${toString lowest} and ${toString highest} (both inclusive)";

  sized =
    name: docs: lowest: highest:
    addCheck int (x: x >= lowest && x <= highest)
    // {
      inherit name;
      description = "${docs}; between ${betweenText lowest highest}";
    };
  unsigned =
    bits: highest:
    sized "unsignedInt${toString bits}" "${toString bits} bit unsigned integer" 0 highest;
  signed =
    bits: half:
    sized "signedInt${toString bits}" "${toString bits} bit signed integer" (-half) (half - 1);

  pathWith =
    {
      inStore ? null,
      absolute ? null,
    }@payload:
    if inStore == true && absolute == false then
      throw "In pathWith, inStore means the path must be absolute"
    else
      mkOptionType {
        name = "path";
        description =
          (if absolute == true then "absolute " else "")
          + "path"
          + (
            if inStore == true then
              " in the Nix store"
            else if inStore == false then
              " not in the Nix store"
            else
              ""
          );
        descriptionClass = "noun";
        merge = mergeEqualOption;
        check =
          x:
          let
            text = toString x;
            isAbsolute = builtins.substring 0 1 text == "/";
            # A proper store path: the directory itself and its hidden files do not count.
            # A path value is copied to the store when it is used.
            stored = isPath x || match "${lib.escapeRegex builtins.storeDir}/[^.].*" text != null;
          in
          isStringLike x
          && (absolute == null || absolute == isAbsolute)
          && (inStore == null || inStore == stored);
        functor = defaultFunctor "path" // {
          type = pathWith;
          payload = { inherit inStore absolute; };
          binOp = a: b: if a == b then a else null;
        };
      };

  strMatching =
    pattern:
    mkOptionType {
      name = "strMatching ${lib.escapeNixString pattern}";
      description = "string matching the pattern ${pattern}";
      descriptionClass = "noun";
      check = x: isString x && match pattern x != null;
      merge = mergeEqualOption;
      functor = defaultFunctor "strMatching" // {
        type = payload: strMatching payload.pattern;
        payload = { inherit pattern; };
        binOp = a: b: if a == b then a else null;
      };
    };

  passwdEntry =
    entry:
    addCheck entry (s: isString s && !(lib.hasInfix ":" s) && !(lib.hasInfix "\n" s))
    // {
      name = "passwdEntry ${entry.name}";
      description = "${phrase nounOrClause entry}, not containing newlines or colons";
      descriptionClass = "nonRestrictiveClause";
    };

  # A name with exactly one of several typed values.
  attrTag =
    tags:
    let
      choices = concatMapStringsSep ", " lib.escapeNixIdentifier (attrNames tags);
      checked = mapAttrs (
        name: opt:
        if isOptionType opt then
          throw "In attrTag, each tag value must be an option, but tag ${lib.escapeNixIdentifier name} was a bare type, not wrapped in mkOption."
        else if lib.isOption opt then
          opt
          // {
            declarations =
              opt.declarations or (
                let
                  pos = builtins.unsafeGetAttrPos name tags;
                in
                if pos == null then [ ] else [ pos.file ]
              );
            declarationPositions =
              opt.declarationPositions or (
                let
                  pos = builtins.unsafeGetAttrPos name tags;
                in
                if pos == null then [ ] else [ pos ]
              );
          }
        else
          throw "In attrTag, each tag value must be an option, but tag ${lib.escapeNixIdentifier name} is a ${typeOf opt}."
      ) tags;
    in
    mkOptionType {
      name = "attrTag";
      description = "attribute-tagged union with choices: ${choices}";
      descriptionClass = "noun";
      getSubOptions =
        prefix:
        mapAttrs (
          name: opt:
          opt
          // {
            loc = prefix ++ [ name ];
          }
        ) checked;
      check = x: isAttrs x && length (attrNames x) == 1 && checked ? ${head (attrNames x)};
      merge =
        loc: defs:
        let
          choice = head (attrNames (head defs).value);
          opt = checked.${choice};
        in
        if all (def: def.value ? ${choice}) defs then
          {
            ${choice} =
              (lib.modules.evalOptionValue (loc ++ [ choice ]) opt (
                map (def: {
                  inherit (def) file;
                  value = def.value.${choice};
                }) defs
              )).value;
          }
        else
          throw "The option `${showOption loc}' is defined both as `${choice}' and as another, in ${showFiles (lib.getFiles defs)}. A definition for option `${showOption loc}' is not of type `attribute-tagged union with choices: ${choices}'.";
      nestedTypes = mapAttrs (_: opt: opt.type) checked;
      functor = defaultFunctor "attrTag" // {
        type = payload: attrTag payload.tags;
        payload.tags = checked;
        binOp =
          a: b:
          let
            both = builtins.intersectAttrs a.tags b.tags;
            joined = mapAttrs (
              name: _:
              lib.modules.mergeOptionDecls [ name ] (
                map
                  (opt: {
                    options = removeAttrs opt [
                      "declarations"
                      "declarationPositions"
                      "loc"
                      "options"
                    ];
                    _file = head (opt.declarations ++ [ lib.unknownModule ]);
                    pos = head (opt.declarationPositions ++ [ null ]);
                  })
                  [
                    a.tags.${name}
                    b.tags.${name}
                  ]
              )
            ) both;
          in
          {
            tags = a.tags // b.tags // joined;
          };
      };
    };

  # Names with values in an order: a list of sets of one attribute each. A set counts as such a
  # list; `mkOrder` on its values decides about their places.
  attrListOf =
    elemType:
    mkOptionType {
      name = "attrListOf";
      description = "attribute list of ${phrase nounOrComposite elemType}";
      descriptionClass = "composite";
      check = v2Check (x: isList x || isAttrs x);
      merge = v2Merge (
        { loc, defs }:
        let
          wrong =
            x:
            if !isAttrs x then
              "Each list element must be an attribute set, but got ${typeOf x}."
            else if length (attrNames x) != 1 then
              "Each list element must be a single-key attribute set, but got ${toString (length (attrNames x))} keys."
            else
              null;
          problems = filter (p: p != null) (
            concatMap (def: if isList def.value then map wrong def.value else [ ]) defs
          );
          entries = concatMap (
            def:
            map (
              pair:
              let
                discharged = lib.modules.dischargeProperties pair.value;
              in
              map (value: {
                inherit (pair) name;
                inherit (def) file;
                inherit value;
                priority =
                  if value._type or null == "order" then value.priority else lib.modules.defaultOrderPriority;
              }) discharged
            ) (if isList def.value then concatMap lib.attrsToList def.value else lib.attrsToList def.value)
          ) defs;
          sorted = builtins.sort (a: b: a.priority < b.priority) (concatLists entries);
          evaluated = map (entry: {
            inherit (entry) name;
            merged = mergeDefinitions (loc ++ [ entry.name ]) elemType [
              {
                inherit (entry) file value;
              }
            ];
          }) sorted;
        in
        {
          headError =
            let
              kind = checkDefs (x: isList x || isAttrs x) loc defs;
            in
            if kind != null then
              { message = "TypeError: ${kind.message}"; }
            else if problems != [ ] then
              { message = head problems; }
            else
              null;
          value = map (e: { ${e.name} = e.merged.mergedValue; }) evaluated;
          valueMeta.list = map (e: e.merged.valueMeta) evaluated;
        }
      );
      emptyValue.value = [ ];
      getSubOptions = prefix: elemType.getSubOptions (prefix ++ [ "<name>" ]);
      getSubModules = elemType.getSubModules;
      substSubModules = m: attrListOf (elemType.substSubModules m);
      typeMerge = _: null;
      nestedTypes.elemType = elemType;
    };

  # Plain data that a file format can hold.
  serializableValueWith =
    {
      typeName,
      nullable ? true,
    }:
    let
      base = lib.types.oneOf [
        lib.types.bool
        int
        float
        str
        lib.types.path
        (attrsWith { elemType = value; })
        (listOf value)
      ];
      value = (if nullable then nullOr base else base) // {
        description = "${typeName} value";
        descriptionClass = "noun";
        # The description would never end otherwise.
        nestedTypes = { };
      };
    in
    value;

  anything = mkOptionType {
    name = "anything";
    description = "anything";
    descriptionClass = "noun";
    check = _: true;
    merge =
      loc: defs:
      let
        kindOf = v: if isAttrs v && isStringLike v then "stringCoercibleSet" else typeOf v;
        kinds = lib.unique (map (def: kindOf def.value) defs);
        kind =
          if length kinds == 1 then
            head kinds
          else
            throw "The option `${showOption loc}' has conflicting option types in ${showFiles (lib.getFiles defs)}";
        unequal = if length defs == 1 then (head defs).value else mergeEqualOption loc defs;
      in
      if kind == "set" then
        (lib.types.attrsOf anything).merge loc defs
      else if kind == "lambda" then
        if length defs == 1 then
          (head defs).value
        else
          x:
          anything.merge (loc ++ [ "<function body>" ]) (
            map (def: {
              inherit (def) file;
              value = def.value x;
            }) defs
          )
      else if kind == "list" && length defs == 1 then
        (head defs).value
      else
        unequal;
  };

  types = {
    inherit
      attrsWith
      listOf
      submoduleWith
      deferredModuleWith
      either
      coercedTo
      nullOr
      functionTo
      unique
      enum
      separatedString
      addCheck
      str
      int
      float
      pathWith
      strMatching
      passwdEntry
      attrTag
      attrListOf
      serializableValueWith
      anything
      mkOptionType
      isType
      setType
      isOptionType
      defaultFunctor
      defaultTypeMerge
      ;
    inherit types;

    raw = mkOptionType {
      name = "raw";
      description = "raw value";
      descriptionClass = "noun";
      check = _: true;
      merge = mergeOneOption;
    };
    unspecified = mkOptionType {
      name = "unspecified";
      description = "unspecified value";
      descriptionClass = "noun";
    };
    bool = plain "bool" "boolean" isBool;
    boolByOr = mkOptionType {
      name = "boolByOr";
      description = "boolean (merged using or)";
      descriptionClass = "noun";
      check = isBool;
      merge = loc: defs: builtins.any (def: def.value) defs;
    };
    number = either int float;
    port = types.ints.u16;
    ints = {
      inherit between;
      unsigned = addCheck int (x: x >= 0) // {
        name = "unsignedInt";
        description = "unsigned integer, meaning >=0";
        descriptionClass = "nonRestrictiveClause";
      };
      positive = addCheck int (x: x > 0) // {
        name = "positiveInt";
        description = "positive integer, meaning >0";
        descriptionClass = "nonRestrictiveClause";
      };
      u8 = unsigned 8 255;
      u16 = unsigned 16 65535;
      u32 = unsigned 32 4294967295;
      s8 = signed 8 128;
      s16 = signed 16 32768;
      s32 = signed 32 2147483648;
    };
    numbers = {
      between =
        lowest: highest:
        assert lib.assertMsg (lowest <= highest) "numbers.between: the lowest value is above the highest";
        addCheck types.number (x: x >= lowest && x <= highest)
        // {
          name = "numberBetween";
          description = "integer or floating point number between ${betweenText lowest highest}";
        };
      nonnegative = addCheck types.number (x: x >= 0) // {
        name = "numberNonnegative";
        description = "nonnegative integer or floating point number, meaning >=0";
        descriptionClass = "nonRestrictiveClause";
      };
      positive = addCheck types.number (x: x > 0) // {
        name = "numberPositive";
        description = "positive integer or floating point number, meaning >0";
        descriptionClass = "nonRestrictiveClause";
      };
    };

    nonEmptyStr = mkOptionType {
      name = "nonEmptyStr";
      description = "non-empty string";
      descriptionClass = "noun";
      check = x: isString x && match "[ \t\n]*" x == null;
      merge = mergeEqualOption;
    };
    singleLineStr = mkOptionType {
      name = "singleLineStr";
      description = "(optionally newline-terminated) single-line string";
      descriptionClass = "noun";
      check = x: isString x && match "[^\n\r]*\n?" x != null;
      merge = loc: defs: lib.removeSuffix "\n" (mergeEqualOption loc defs);
    };
    commas = separatedString "," // {
      name = "commas";
    };
    lines = separatedString "\n" // {
      name = "lines";
      description = "strings concatenated with \"\\n\"";
    };
    envVar = separatedString ":" // {
      name = "envVar";
    };
    string = throw "The type `types.string' is deprecated. Please use the more appropriate types: `types.str', `types.lines', `types.separatedString'.";

    attrs = mkOptionType {
      name = "attrs";
      description = "attribute set";
      check = isAttrs;
      merge = _: defs: foldl' (acc: def: acc // def.value) { } defs;
      emptyValue.value = { };
    };
    pkgs = mkOptionType {
      name = "pkgs";
      description = "Nixpkgs package set";
      descriptionClass = "noun";
      check = isAttrs;
      merge = mergeOneOption;
    };
    package = mkOptionType {
      name = "package";
      description = "package";
      descriptionClass = "noun";
      check = x: lib.isDerivation x || lib.isStorePath x;
      merge =
        loc: defs:
        let
          found = mergeOneOption loc defs;
        in
        if isPath found || (isString found && !builtins.hasContext found) then
          lib.toDerivation found
        else
          found;
    };
    shellPackage = types.package // {
      check = x: lib.isDerivation x && x ? shellPath;
    };
    path = pathWith { absolute = true; };
    pathInStore = pathWith { inStore = true; };
    externalPath = pathWith {
      absolute = true;
      inStore = false;
    };
    fileset = mkOptionType {
      name = "fileset";
      description = "fileset";
      descriptionClass = "noun";
      check = lib.fileset.isFileset;
      merge = _: defs: lib.fileset.unions (lib.getValues defs);
      emptyValue.value = lib.fileset.empty;
    };

    nonEmptyListOf =
      elemType:
      let
        list = addCheck (listOf elemType) (l: l != [ ]);
      in
      list
      // {
        description = "non-empty ${phrase (class: class == "noun") (listOf elemType)}";
        emptyValue = { };
        substSubModules = m: types.nonEmptyListOf (elemType.substSubModules m);
      };
    attrsOf = elemType: attrsWith { inherit elemType; };
    lazyAttrsOf =
      elemType:
      attrsWith {
        inherit elemType;
        lazy = true;
      };
    loaOf =
      elemType:
      types.attrsOf elemType
      // {
        name = "loaOf";
        deprecationMessage = "Mixing lists with attribute values is no longer possible; please use `types.attrsOf` instead.";
      };
    uniq = unique { message = ""; };
    submodule =
      modules:
      submoduleWith {
        shorthandOnlyDefinesConfig = true;
        modules = lib.toList modules;
      };
    deferredModule = deferredModuleWith { };
    oneOf =
      list:
      if list == [ ] then
        throw "oneOf: there must be at least one type"
      else
        lib.foldr either (lib.last list) (lib.init list);

    optionType = mkOptionType {
      name = "optionType";
      description = "optionType";
      descriptionClass = "noun";
      check = isOptionType;
      merge =
        loc: defs:
        if length defs == 1 then
          (head defs).value
        else
          let
            # Each type as the declaration of one nameless option: they merge as those do.
            decl = def: {
              _file = def.file;
              options = mkOption { type = def.value; };
              pos = null;
            };
            merged = lib.modules.fixupOptionType loc (lib.modules.mergeOptionDecls loc (map decl defs));
          in
          merged.type;
    };
    optionDeclaration = mkOptionType {
      name = "optionDeclaration";
      description = "option declaration";
      descriptionClass = "noun";
      check = x: lib.isOption x && !(x ? value);
      merge =
        loc: defs:
        removeAttrs (lib.modules.mergeOptionDecls loc (
          map (def: {
            _file = def.file;
            pos = null;
            options = def.value;
          }) defs
        )) [ "loc" ];
    };
    luaInline = mkOptionType {
      name = "luaInline";
      description = "inline lua";
      descriptionClass = "noun";
      check = isType "lua-inline";
      merge = mergeEqualOption;
    };
    json = serializableValueWith { typeName = "JSON"; };
    toml = serializableValueWith {
      typeName = "TOML";
      nullable = false;
    };

    optionDescriptionPhrase = phrase;
    mergeTypes =
      t1: t2:
      assert isOptionType t1 && isOptionType t2;
      let
        joined = t1.typeMerge t2.functor;
      in
      if joined == null then setType "merge-error" { error = "Cannot merge two types"; } else joined;
    noCheckForDocsModule = {
      options._module.check = mkOption { default = false; };
      config._module.check = lib.mkForce false;
    };
  };
in
types
