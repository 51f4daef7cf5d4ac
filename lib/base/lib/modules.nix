# The module system: loading modules, matching definitions with declarations, and merging both.
#
# The way of a configuration: modules are loaded and their imports followed once per key
# (`collectModules`); declarations and definitions are grouped by name, level by level
# (`mergeLevel`), with conditions, priorities and merges pushed down unevaluated; each option then
# merges its own definitions (`evalOptionValue`, `mergeDefinitions`).
{ lib }:
let
  inherit (builtins)
    addErrorContext
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    elem
    filter
    foldl'
    head
    isAttrs
    isFunction
    isList
    isString
    length
    mapAttrs
    sort
    tail
    typeOf
    unsafeGetAttrPos
    zipAttrsWith
    ;
  inherit (lib)
    isOption
    mkOption
    showDefs
    showOption
    types
    unknownModule
    ;

  # -- Properties: values with a wish on how they take part in the merge.

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  mkDefinition = args: args // { _type = "definition"; };

  mkOptionDefault = mkOverride 1500;
  defaultOverridePriority = 100;
  defaultOrderPriority = 1000;

  # A definition with its conditions decided and its merges opened: the values that count.
  dischargeProperties =
    def:
    let
      type = def._type or null;
    in
    if type == null then
      [ def ]
    else if type == "merge" then
      concatMap dischargeProperties def.contents
    else if type == "if" then
      if builtins.isBool def.condition then
        if def.condition then dischargeProperties def.content else [ ]
      else
        throw "‘mkIf’ called with a non-Boolean condition"
    else
      [ def ];

  priorityOf =
    def: if def.value._type or null == "override" then def.value.priority else defaultOverridePriority;

  # Keeps the definitions of the best (lowest) priority.
  filterOverrides' =
    defs:
    if any (def: def.value._type or null == "override") defs then
      let
        best = foldl' (p: def: lib.min p (priorityOf def)) 9999 defs;
      in
      {
        values = concatMap (
          def:
          if priorityOf def != best then
            [ ]
          else if def.value._type or null == "override" then
            [ (def // { value = def.value.content; }) ]
          else
            [ def ]
        ) defs;
        highestPrio = best;
      }
    else
      {
        values = defs;
        highestPrio = if defs == [ ] then 9999 else defaultOverridePriority;
      };

  sortProperties =
    defs:
    let
      opened = map (
        def:
        if def.value._type or null == "order" then
          def
          // {
            value = def.value.content;
            inherit (def.value) priority;
          }
        else
          def
      ) defs;
    in
    sort (a: b: (a.priority or defaultOrderPriority) < (b.priority or defaultOrderPriority)) opened;

  # Moves properties of a set onto its attributes, without deciding any condition.
  pushDownProperties =
    value:
    let
      type = value._type or null;
    in
    if type == null then
      [ value ]
    else if type == "merge" then
      concatMap pushDownProperties value.contents
    else if type == "if" then
      map (mapSet (_: mkIf value.condition)) (pushDownProperties value.content)
    else if type == "override" then
      map (mapSet (_: mkOverride value.priority)) (pushDownProperties value.content)
    else
      [ value ];

  # What is no set stays as it is: the level that reads it knows the option and says so.
  mapSet = f: value: if isAttrs value then mapAttrs f value else value;

  # Applies a function beneath all properties.
  mapDefinitionValue =
    f: def:
    let
      type = def._type or null;
      within = mapDefinitionValue f;
    in
    if type == "merge" then
      def // { contents = map within def.contents; }
    else if type == "if" || type == "override" || type == "order" then
      def // { content = within def.content; }
    else if type == "definition" then
      def // { value = within def.value; }
    else
      f def;

  # -- Merging the definitions of one option.

  coherent =
    loc: type:
    if !(type.merge ? v2) || type.check ? v2 then
      type
    else
      throw "The option `${showOption loc}' has a type `${type.description or type.name}' with an ad-hoc `type // { check = ...; }' override, which is incompatible with the way this type checks and merges. Please use `lib.types.addCheck` instead.";

  checkAndMerge =
    loc: type: defs:
    if type.merge ? v2 then
      (coherent loc type).merge.v2 { inherit loc defs; }
    else
      {
        headError = checkDefs type.check loc defs;
        value = type.merge loc defs;
        valueMeta = { };
      };

  checkDefs =
    check: _: defs:
    if all (def: check def.value) defs then
      null
    else
      { message = "Definition values:${showDefs (filter (def: !check def.value) defs)}"; };

  mergeDefinitions =
    loc: type: defs:
    let
      discharged = concatMap (
        def:
        map
          (
            value:
            if value._type or null == "definition" then
              {
                inherit (value) file value;
              }
            else
              {
                inherit (def) file;
                inherit value;
              }
          )
          (
            addErrorContext "while evaluating definitions from `${toString def.file}':" (
              dischargeProperties def.value
            )
          )
      ) defs;
      defsFinal' =
        let
          kept = filterOverrides' discharged;
        in
        {
          values =
            if any (def: def.value._type or null == "order") kept.values then
              sortProperties kept.values
            else
              kept.values;
          inherit (kept) highestPrio;
        };
      defsFinal = defsFinal'.values;
      isDefined = defsFinal != [ ];
      checkedAndMerged =
        if isDefined then
          checkAndMerge loc type defsFinal
        else
          {
            headError = null;
            valueMeta = { };
            value =
              if type.emptyValue ? merged then
                (checkAndMerge loc type [ ]).value
              else if type.emptyValue ? value then
                type.emptyValue.value
              else
                throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option.";
          };
      mergedValue =
        if checkedAndMerged.headError == null then
          checkedAndMerged.value
        else
          throw "A definition for option `${showOption loc}' is not of type `${type.description}'. ${
            if checkedAndMerged.headError ? message then checkedAndMerged.headError.message else ""
          }";
    in
    {
      inherit
        defsFinal'
        defsFinal
        isDefined
        checkedAndMerged
        mergedValue
        ;
      inherit (checkedAndMerged) valueMeta;
      optionalValue = if isDefined then { value = mergedValue; } else { };
    };

  evalOptionValue =
    loc: opt: defs:
    let
      allDefs =
        if opt ? default then
          [
            {
              file = head opt.declarations;
              value = mkOptionDefault opt.default;
            }
          ]
          ++ defs
        else
          defs;
      merged =
        if opt.readOnly or false && length allDefs > 1 then
          let
            single = map (def: def // { value = (mergeDefinitions loc opt.type [ def ]).mergedValue; }) allDefs;
          in
          throw "The option `${showOption loc}' is read-only, but it's set multiple times. Definition values:${showDefs single}"
        else
          mergeDefinitions loc opt.type allDefs;
      value = if opt ? apply then opt.apply merged.mergedValue else merged.mergedValue;
      deprecation = opt.type.deprecationMessage or null;
    in
    opt
    // {
      value = addErrorContext "while evaluating the option `${showOption loc}':" (
        if deprecation == null then
          value
        else
          lib.warn "The type `types.${opt.type.name}' of option `${showOption loc}' defined in ${lib.showFiles opt.declarations} is deprecated. ${deprecation}" value
      );
      inherit (merged.defsFinal') highestPrio;
      inherit (merged) isDefined valueMeta;
      definitions = map (def: def.value) merged.defsFinal;
      files = map (def: def.file) merged.defsFinal;
      definitionsWithLocations = merged.defsFinal;
      __toString = _: showOption loc;
    };

  # -- Merging the declarations of one option.

  # Several declarations of one option add up as long as they do not contradict each other.
  mergeOptionDecls =
    loc: decls:
    foldl'
      (
        acc: decl:
        let
          new = decl.options;
          sameType = acc ? type && new ? type;
          mergedType = acc.type.typeMerge new.type.functor;
          clash =
            (new ? default && acc ? default)
            || (new ? example && acc ? example)
            || (new ? description && acc ? description)
            || (new ? apply && acc ? apply)
            || (sameType && mergedType == null);
          submodules = new.type.getSubModules or null;
          nested = if submodules == null then [ ] else map (setDefaultModuleLocation decl._file) submodules;
        in
        if clash then
          throw "The option `${showOption loc}' in `${toString decl._file}' is already declared in ${lib.showFiles acc.declarations}."
        else
          acc
          // new
          // {
            declarations = acc.declarations ++ [ decl._file ];
            declarationPositions = acc.declarationPositions ++ [ (positionOf decl) ];
            options = nested ++ acc.options;
          }
          // (if sameType then { type = mergedType; } else { })
      )
      {
        inherit loc;
        declarations = [ ];
        declarationPositions = [ ];
        options = [ ];
      }
      decls;

  positionOf =
    decl:
    let
      pos = decl.pos or null;
    in
    if pos == null then
      {
        file = decl._file;
        line = null;
        column = null;
      }
    else
      pos;

  fixupOptionType =
    loc: opt:
    if !(opt ? type) then
      opt // { type = types.unspecified; }
    else if opt.type.getSubModules == null then
      opt
    else
      opt
      // {
        type = opt.type.substSubModules opt.options;
        options = [ ];
      };

  # -- Matching definitions with declarations, one level of names at a time.

  # decls: [ { _file; pos; options; } ], defs: [ { file; value; } ], both sets at this level.
  # Gives the options found and the definitions that no declaration asked for.
  mergeLevel =
    loc: decls: defs:
    let
      declsByName = zipAttrsWith (_: found: found) (
        map (
          decl:
          if isAttrs decl.options && !(decl.options ? _type) then
            mapAttrs (name: options: {
              inherit (decl) _file;
              inherit options;
              pos = unsafeGetAttrPos name decl.options;
            }) decl.options
          else
            throw "In module ${toString decl._file}: expected an option declaration at option path `${showOption loc}` but got ${
              if isAttrs decl.options then
                "an attribute set with type ${toString decl.options._type}"
              else
                "a value of type ${typeOf decl.options}"
            }"
        ) decls
      );

      defsByName = zipAttrsWith (_: found: found) (
        concatMap (
          def:
          let
            inherited = def.value._type or null == "definition";
            file = if inherited then def.value.file else def.file;
          in
          map (
            value:
            if isAttrs value then
              mapAttrs (_: value: { inherit file value; }) value
            else
              throw "In module `${toString file}', you're trying to define a value of type `${typeOf value}'\nrather than an attribute set for the option\n`${showOption loc}'!\n\nThis usually happens if `${showOption loc}' has option\ndefinitions inside that are not matched. Check how the option is declared."
          ) (pushDownProperties (if inherited then def.value.value else def.value))
        ) defs
      );

      entries = mapAttrs (
        name: found:
        let
          here = loc ++ [ name ];
          values = defsByName.${name} or [ ];
          isLeaf = decl: isOption decl.options;
          leaves = filter isLeaf found;
        in
        if leaves == [ ] then
          mergeLevel here found values
        else if length leaves == length found then
          leafOption here found values
        else
          let
            parent = mergeOptionDecls here leaves;
            rest = filter (decl: !isLeaf decl) found;
            sub = (parent.type or types.unspecified).getSubModules or null;
          in
          if sub == null then
            throw (nestedUnderLeaf here leaves rest)
          else
            leafOption here (map (decl: if isLeaf decl then decl else asSubmodule decl) found) values
      ) declsByName;

      undeclared =
        let
          rest = removeAttrs defsByName (attrNames declsByName);
        in
        map (name: {
          prefix = loc ++ [ name ];
          defs = rest.${name};
        }) (attrNames rest);
    in
    {
      options = mapAttrs (_: entry: entry.options) entries;
      unmatched = concatLists (map (entry: entry.unmatched) (attrValues entries)) ++ undeclared;
    };

  leafOption = loc: decls: defs: {
    options = evalOptionValue loc (fixupOptionType loc (mergeOptionDecls loc decls)) defs;
    unmatched = [ ];
  };

  # Options declared beneath an option of submodule type belong into the submodule.
  asSubmodule = decl: {
    inherit (decl) _file;
    pos = decl.pos or null;
    options = mkOption {
      type = types.submoduleWith {
        modules = [ { options = decl.options; } ];
        shorthandOnlyDefinesConfig = null;
      };
    };
  };

  nestedUnderLeaf =
    loc: leaves: rest:
    let
      leaf = head leaves;
      type = leaf.options.type or null;
      names =
        prefix: decl:
        if isOption decl.options then
          [ "\n- option(s) with prefix `${showOption prefix}' in module `${toString decl._file}'" ]
        else
          concatMap (
            name:
            names (prefix ++ [ name ]) {
              inherit (decl) _file;
              options = decl.options.${name};
            }
          ) (attrNames decl.options);
    in
    "The option `${showOption loc}' in module `${toString leaf._file}' would be a parent of the following options, but its type `${
      if type == null then "<no description>" else type.description or "<no description>"
    }' does not support nested options.${lib.concatStrings (concatMap (names loc) rest)}";

  # -- Loading modules.

  setDefaultModuleLocation = file: module: {
    _file = file;
    imports = [ module ];
  };

  applyModuleArgs =
    key: f: args:
    let
      named = mapAttrs (
        name: _:
        addErrorContext "while evaluating the module argument `${name}' in \"${key}\":" (
          args.${name} or (addErrorContext
            "noting that argument `${name}` is not externally provided, so querying `_module.args` instead, requiring `config`"
            args.config._module.args.${name}
          )
        )
      ) (lib.functionArgs f);
    in
    f (args // named);

  applyIfFunction =
    key: f: args:
    if lib.isFunction f then applyModuleArgs key f args else f;

  moduleKeys = [
    "_class"
    "_file"
    "key"
    "disabledModules"
    "require"
    "imports"
    "options"
    "config"
    "meta"
    "freeformType"
  ];

  # A module in its long form, whatever form it was written in.
  unifyModuleSyntax =
    file: key: m:
    let
      withMeta =
        config:
        if m ? meta then
          mkMerge [
            config
            { inherit (m) meta; }
          ]
        else
          config;
      withFreeform =
        config:
        if m ? freeformType then
          mkMerge [
            config
            { _module.freeformType = m.freeformType; }
          ]
        else
          config;
      common = {
        _file = toString m._file or file;
        _class = m._class or null;
        key = toString m.key or key;
        disabledModules = m.disabledModules or [ ];
      };
    in
    if m ? config || m ? options then
      let
        extra = removeAttrs m moduleKeys;
      in
      if extra != { } then
        throw "Module `${key}' has an unsupported attribute `${head (attrNames extra)}'. This is caused by introducing a top-level `config' or `options' attribute. Add configuration attributes immediately on the top level instead, or move all of them (namely: ${toString (attrNames extra)}) into the explicit `config' attribute."
      else
        common
        // {
          imports = m.imports or [ ];
          options = m.options or { };
          config = withFreeform (withMeta (m.config or { }));
        }
    else
      lib.throwIfNot (isAttrs m) "module ${file} (${key}) does not look like a module." (
        common
        // {
          imports = m.require or [ ] ++ m.imports or [ ];
          options = { };
          config = withFreeform (
            removeAttrs m [
              "_class"
              "_file"
              "key"
              "disabledModules"
              "require"
              "imports"
              "freeformType"
            ]
          );
        }
      );

  notAModule =
    file: args: m:
    let
      within = args._prefix or [ ];
      hint =
        if m._type == "configuration" then
          "\nThis is the result of an evaluation; to use it in another one, please only import the modules that make up the configuration. An evaluated configuration is loaded with its own arguments and cannot be merged any more."
        else if m._type == "flake" then
          "\nPerhaps you meant one of its modules, such as `nixosModules.default`."
        else
          "";
    in
    throw "Expected a module, but found a value of type \"${m._type}\", while trying to load a module into ${toString file}${
      if within == [ ] then "" else ", while trying to load a module into `${showOption within}'"
    }.${hint}";

  loadModule =
    args: file: key: m:
    if lib.isFunction m then
      unifyModuleSyntax file key (applyModuleArgs key m args)
    else if isAttrs m then
      let
        type = m._type or "module";
      in
      if type == "module" then
        unifyModuleSyntax file key m
      else if type == "if" || type == "override" then
        loadModule args file key { config = m; }
      else
        notAModule file args m
    else if isList m then
      let
        shown = map (def: {
          inherit file;
          value = def;
        }) [ m ];
      in
      throw "Module imports can't be nested lists. Perhaps you meant to remove one level of lists? Definitions: ${showDefs shown}"
    else
      unifyModuleSyntax (toString m) (toString m) (applyIfFunction (toString m) (import m) args);

  checkClass =
    class: m:
    if class == null || m._class == null || m._class == class then
      m
    else
      throw "The module `${m._file}` (class: \"${m._class}\") cannot be imported into a module evaluation that expects class \"${class}\".";

  # The modules as they are imported: one entry per place, its own imports within.
  importTree =
    class: modules: args:
    let
      entriesOf =
        file: key: list:
        lib.imap1 (
          n: m:
          let
            module = checkClass class (loadModule args file "${key}:anon-${toString n}" m);
          in
          {
            inherit module;
            inherit (module) key;
            imports = entriesOf module._file module.key module.imports;
          }
        ) list;
    in
    entriesOf unknownModule "" modules;

  closureOf =
    keep: entries:
    builtins.genericClosure {
      startSet = filter keep entries;
      operator = entry: filter keep entry.imports;
    };

  disabledKey =
    modulesPath: file: x:
    if isString x then
      if builtins.substring 0 1 x == "/" then x else "${toString modulesPath}/${x}"
    else if isAttrs x then
      if lib.isConvertibleWithToString x && !(x ? key) then
        toString x
      else
        toString (
          x.key
            or (throw "Module `${file}` contains a disabledModules item that is an attribute set, presumably a module, that does not have a `key` attribute. Without one there is nothing to recognise it by; name the file, or give the module a `key`.")
        )
    else if isFunction x then
      throw "Module `${file}` contains a disabledModules item that is a function; name its file, or give the module a `key`."
    else
      toString x;

  disabledOf =
    modulesPath: tree:
    concatMap (entry: map (disabledKey modulesPath entry.module._file) entry.module.disabledModules) (
      closureOf (_: true) tree
    );

  # The options that every evaluation has; no part of what people ask about.
  internalKey = "lib/modules.nix";

  collectModules =
    class: modulesPath: modules: args:
    let
      tree = importTree class modules args;
      disabled = disabledOf modulesPath tree;
      keep = if disabled == [ ] then _: true else entry: !elem entry.key disabled;
      graphOf = map (entry: {
        inherit (entry) key;
        file = entry.module._file;
        imports = graphOf entry.imports;
        disabled = elem entry.key disabled;
      });
    in
    {
      modules = map (entry: entry.module) (closureOf keep tree);
      graph = graphOf (filter (entry: entry.key != internalKey) tree);
    };

  # -- Undefined options.

  # Names close to what was written, nearest first.
  suggestions =
    prefix: options: loc:
    let
      distance = name: lib.strings.levenshtein name wanted;
      parent = lib.init loc;
      wanted = lib.last loc;
      within = lib.attrByPath parent { } options;
      names =
        if isOption within || !isAttrs within then
          [ ]
        else
          filter (n: n != "_module" && n != "_freeformOptions") (attrNames within);
      near = builtins.sort (a: b: a.d < b.d || (a.d == b.d && a.n < b.n)) (
        map (n: {
          inherit n;
          d = distance n;
        }) names
      );
      quoted = map (x: "`${showOption (prefix ++ parent ++ [ x.n ])}'") (lib.take 3 near);
    in
    if quoted == [ ] then
      ""
    else
      "\n\nDid you mean ${
        if length quoted == 1 then
          head quoted
        else
          "${lib.concatStringsSep ", " (lib.init quoted)} or ${lib.last quoted}"
      }?";

  undefinedMessage =
    {
      prefix,
      options,
      entry,
    }:
    let
      name = showOption (prefix ++ entry.prefix);
      shown = addErrorContext "while evaluating the error message for definitions for `${name}', which is an option that does not exist" (
        addErrorContext "while evaluating a definition from `${toString (head entry.defs).file}'" (
          showDefs entry.defs
        )
      );
      declared = attrNames (removeAttrs options [ "_module" ]);
      empty = declared == [ ];
      where = showOption prefix;
      hint =
        if !empty then
          suggestions prefix options entry.prefix
        else if where == "" then
          "\n\nIt seems as if you're trying to declare an option by placing it into `config' rather than `options'!"
        else
          "\n\nHowever there are no options defined in `${where}'. Are you sure you've declared your options properly?\nThis can happen if you e.g. declared your options in `types.submodule' under `config' rather than `options'.";
    in
    "The option `${name}' does not exist. Definition values:${shown}${hint}";

  # -- Evaluation.

  evalModules =
    evalArgs@{
      modules,
      prefix ? [ ],
      specialArgs ? { },
      class ? null,
      args ? { },
      check ? true,
    }:
    let
      internalModule = {
        _file = "lib/modules.nix";
        key = internalKey;
        options._module = {
          args = mkOption {
            type = types.lazyAttrsOf types.raw;
            ${if prefix == [ ] then null else "internal"} = true;
            visible = prefix == [ ];
            description = "Arguments that every module of this configuration may ask for by name, beside `config`, `options`, `lib` and the special arguments. They depend on the configuration itself, so `imports` cannot.";
          };
          check = mkOption {
            type = types.bool;
            internal = true;
            default = check;
            description = "Whether a definition of an option that nobody declares is an error.";
          };
          freeformType = mkOption {
            type = types.nullOr types.optionType;
            internal = true;
            default = null;
            description = "The type under which definitions without an option of their own are merged.";
          };
          specialArgs = mkOption {
            readOnly = true;
            internal = true;
            description = "The special arguments of this evaluation.";
          };
        };
        config._module = {
          args = {
            inherit extendModules;
            moduleType = type;
          };
          inherit specialArgs;
        };
      };

      argsModule = {
        _file = "lib/modules.nix";
        key = "lib/modules.nix#args";
        config._module.args = args;
      };

      collected =
        collectModules class (specialArgs.modulesPath or "")
          (modules ++ [ internalModule ] ++ (if args == { } then [ ] else [ argsModule ]))
          (
            {
              inherit
                lib
                options
                specialArgs
                ;
              _class = class;
              _prefix = prefix;
              config = addErrorContext "if you get an infinite recursion here, you probably reference `config` in `imports`. What is imported cannot depend on the configuration: import unconditionally, and let `mkEnableOption` and `mkIf` decide about the effect." config;
            }
            // specialArgs
          );

      # Later modules come first, imports before the modules that import them.
      ordered = lib.reverseList collected.modules;

      merged =
        mergeLevel prefix
          (map (m: {
            inherit (m) _file options;
            pos = null;
          }) ordered)
          (
            map (m: {
              file = m._file;
              value = m.config;
            }) ordered
          );

      inherit (merged) options;

      # Locations of unmatched definitions without the prefix of this evaluation.
      depth = length prefix;
      unmatched = map (entry: {
        prefix = lib.drop depth entry.prefix;
        inherit (entry) defs;
      }) merged.unmatched;

      valuesOf = mapAttrs (_: o: if isOption o then o.value else valuesOf o);
      declaredConfig = valuesOf options;

      inherit (declaredConfig._module) freeformType;
      freeformConfig =
        let
          defs = concatMap (
            entry:
            map (def: {
              inherit (def) file;
              value = lib.setAttrByPath entry.prefix def.value;
            }) entry.defs
          ) unmatched;
        in
        if defs == [ ] then { } else freeformType.merge prefix defs;

      config =
        if freeformType == null then declaredConfig else lib.recursiveUpdate freeformConfig declaredConfig;

      checkUnmatched =
        if declaredConfig._module.check && freeformType == null && unmatched != [ ] then
          throw (undefinedMessage {
            inherit prefix options;
            entry = head unmatched;
          })
        else
          null;
      checked = builtins.seq checkUnmatched;

      extendModules =
        extension@{
          modules ? [ ],
          specialArgs ? { },
          prefix ? [ ],
        }:
        evalModules (
          evalArgs
          // {
            inherit class;
            modules = evalArgs.modules ++ modules;
            specialArgs = evalArgs.specialArgs or { } // specialArgs;
            prefix = extension.prefix or evalArgs.prefix or [ ];
          }
        );

      type = types.submoduleWith {
        inherit modules specialArgs class;
      };
    in
    {
      _type = "configuration";
      options = checked options;
      config = checked (removeAttrs config [ "_module" ]);
      inherit (config) _module;
      inherit (collected) graph;
      inherit extendModules type class;
    };

  # -- Modules that keep old option names alive.

  mkAliasIfDef = option: mkIf (isOption option && option.isDefined);
  mkAliasAndWrapDefinitions = wrap: option: mkAliasIfDef option (wrap (mkMerge option.definitions));
  mkAliasAndWrapDefsWithPriority =
    wrap: option:
    let
      priority = option.highestPrio or defaultOverridePriority;
    in
    mkAliasIfDef option (wrap (mkMerge (map (mkOverride priority) option.definitions)));

  doRename =
    {
      from,
      to,
      visible,
      warn,
      use,
      withPriority ? true,
      condition ? true,
    }:
    { config, options, ... }:
    let
      old = lib.getAttrFromPath from options;
      target = lib.attrByPath to { } options;
      newValue =
        lib.attrByPath to (abort "Renaming error: option `${showOption to}' does not exist.")
          config;
      wrap = if withPriority then mkAliasAndWrapDefsWithPriority else mkAliasAndWrapDefinitions;
    in
    {
      options = lib.setAttrByPath from (
        mkOption (
          {
            inherit visible;
            description = "Alias of {option}`${showOption to}`.";
            apply = _: use newValue;
          }
          // lib.optionalAttrs (target ? type) { inherit (target) type; }
        )
      );
      config = mkIf condition (mkMerge [
        (lib.optionalAttrs (options ? warnings) {
          warnings =
            lib.optional (warn && old.isDefined)
              "The option `${showOption from}' defined in ${lib.showFiles old.files} has been renamed to `${showOption to}'.";
        })
        (wrap (lib.setAttrByPath to) old)
      ]);
    };

  mkMergedOptionModule =
    from: to: mergeFn:
    { config, options, ... }:
    let
      # No configuration holds this text by accident.
      unset = "_mkMergedOptionModule";
      isSet = path: lib.getAttrFromPath path config != unset;
    in
    {
      options = foldl' lib.recursiveUpdate { } (
        map (
          path:
          lib.setAttrByPath path (mkOption {
            visible = false;
            default = unset;
          })
        ) from
      );
      config = {
        warnings = concatMap (
          path:
          lib.optional (isSet path) "The option `${showOption path}' defined in ${lib.showFiles (lib.getAttrFromPath path options).files} has been changed to `${showOption to}' that has a different type. Please read `${showOption to}' documentation and update your configuration accordingly."
        ) from;
      }
      // lib.setAttrByPath to (mkMerge (lib.optional (any isSet from) (mergeFn config)));
    };
in
{
  inherit
    mkIf
    mkMerge
    mkOverride
    mkOrder
    mkDefinition
    mkOptionDefault
    defaultOverridePriority
    defaultOrderPriority
    dischargeProperties
    filterOverrides'
    sortProperties
    pushDownProperties
    mapDefinitionValue
    mergeDefinitions
    evalOptionValue
    mergeOptionDecls
    fixupOptionType
    setDefaultModuleLocation
    unifyModuleSyntax
    evalModules
    mkAliasIfDef
    mkAliasAndWrapDefinitions
    mkAliasAndWrapDefsWithPriority
    doRename
    mkMergedOptionModule
    checkDefs
    checkAndMerge
    ;

  applyModuleArgsIfFunction = applyIfFunction;
  collectModules =
    class: modulesPath: modules: args:
    (collectModules class modulesPath modules args).modules;
  filterOverrides = defs: (filterOverrides' defs).values;

  mergeModules =
    loc: modules:
    lib.modules.mergeModules' loc modules (
      concatMap (
        m:
        map (config: {
          file = m._file;
          inherit config;
        }) (dischargeProperties m.config)
      ) modules
    );
  mergeModules' =
    loc: modules: configs:
    let
      result =
        mergeLevel loc
          (map (m: {
            inherit (m) _file options;
            pos = null;
          }) modules)
          (
            map (c: {
              inherit (c) file;
              value = c.config;
            }) configs
          );
    in
    {
      matchedOptions = result.options;
      unmatchedDefns = concatMap (
        entry: map (def: def // { prefix = lib.drop (length loc) entry.prefix; }) entry.defs
      ) result.unmatched;
    };
  mergeAttrDefinitionsWithPrio =
    opt:
    let
      byName = zipAttrsWith (_: defs: defs) (
        concatMap (
          def: map (mapAttrs (_: value: def // { inherit value; })) (pushDownProperties def.value)
        ) opt.definitionsWithLocations
      );
    in
    if opt.type.nestedTypes ? elemType then
      mapAttrs (
        name: defs:
        let
          merged = mergeDefinitions (opt.loc ++ [ name ]) opt.type.nestedTypes.elemType defs;
        in
        {
          value = merged.mergedValue;
          inherit (merged.defsFinal') highestPrio;
        }
      ) byName
    else
      throw "mergeAttrDefinitionsWithPrio: the option `${showOption opt.loc}' is no set of values of one type";

  importApply = file: staticArgs: setDefaultModuleLocation file (import file staticArgs);
  importJSON = file: {
    _file = file;
    config = lib.importJSON file;
  };
  importTOML = file: {
    _file = file;
    config = lib.importTOML file;
  };

  mkAssert =
    assertion: message: content:
    mkIf (if assertion then true else throw "\nFailed assertion: ${message}") content;
  mkDefault = mkOverride 1000;
  mkImageMediaOverride = mkOverride 60;
  mkForce = mkOverride 50;
  mkVMOverride = mkOverride 10;
  mkFixStrictness = lib.warn "lib.mkFixStrictness has no effect and will be removed. It returns its argument unmodified, so you can just remove any calls." lib.id;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  mkAliasDefinitions = mkAliasAndWrapDefinitions lib.id;
  mkDerivedConfig = opt: f: mkOverride (opt.highestPrio or defaultOverridePriority) (f opt.value);
  fixMergeModules =
    modules: args:
    lib.evalModules {
      inherit modules args;
      check = false;
    };

  mkRemovedOptionModule =
    path: replacement:
    { options, ... }:
    {
      options = lib.setAttrByPath path (mkOption {
        visible = false;
        apply =
          _:
          throw "The option `${showOption path}' can no longer be used since it's been removed. ${replacement}";
      });
      config.assertions =
        let
          opt = lib.getAttrFromPath path options;
        in
        [
          {
            assertion = !opt.isDefined;
            message = "The option definition `${showOption path}' in ${lib.showFiles opt.files} no longer has any effect; please remove it.\n${replacement}";
          }
        ];
    };
  mkRenamedOptionModule =
    from: to:
    doRename {
      inherit from to;
      visible = false;
      warn = true;
      use = builtins.trace "Obsolete option `${showOption from}' is used. It was renamed to `${showOption to}'.";
    };
  mkRenamedOptionModuleWith =
    {
      from,
      to,
      sinceRelease,
    }:
    doRename {
      inherit from to;
      visible = false;
      warn = lib.oldestSupportedReleaseIsAtLeast sinceRelease;
      use = lib.warnIf (lib.oldestSupportedReleaseIsAtLeast sinceRelease) "Obsolete option `${showOption from}' is used. It was renamed to `${showOption to}'.";
    };
  mkChangedOptionModule =
    from: to: changeFn:
    mkMergedOptionModule [ from ] to changeFn;
  mkAliasOptionModule =
    from: to:
    doRename {
      inherit from to;
      visible = true;
      warn = false;
      use = lib.id;
    };
  mkAliasOptionModuleMD = lib.modules.mkAliasOptionModule;
}
