# Attribute sets.
{ lib }:
let
  inherit (builtins)
    attrNames
    attrValues
    concatMap
    foldl'
    hasAttr
    head
    isAttrs
    length
    listToAttrs
    mapAttrs
    zipAttrsWith
    ;

  nameValuePair = name: value: { inherit name value; };

  isDerivation = x: x.type or null == "derivation";

  # A list of path components as a dotted name.
  attrByPath =
    path: fallback: set:
    let
      n = length path;
      go =
        i: value:
        if i == n then
          value
        else
          let
            name = builtins.elemAt path i;
          in
          if value ? ${name} then go (i + 1) value.${name} else fallback;
    in
    go 0 set;

  hasAttrByPath =
    path: set:
    let
      n = length path;
      go =
        i: value:
        i == n
        || (
          let
            name = builtins.elemAt path i;
          in
          value ? ${name} && go (i + 1) value.${name}
        );
    in
    go 0 set;

  longestValidPathPrefix =
    path: set:
    let
      n = length path;
      go =
        i: value:
        if i == n then
          path
        else
          let
            name = builtins.elemAt path i;
          in
          if value ? ${name} then go (i + 1) value.${name} else lib.take i path;
    in
    go 0 set;

  setAttrByPath =
    path: value:
    let
      n = length path;
      go = i: if i == n then value else { ${builtins.elemAt path i} = go (i + 1); };
    in
    go 0;

  filterAttrs = keep: set: removeAttrs set (builtins.filter (n: !keep n set.${n}) (attrNames set));

  filterAttrsRecursive =
    keep: set:
    listToAttrs (
      concatMap (
        name:
        let
          value = set.${name};
        in
        if keep name value then
          [ (nameValuePair name (if isAttrs value then filterAttrsRecursive keep value else value)) ]
        else
          [ ]
      ) (attrNames set)
    );

  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);

  mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));

  mapAttrsRecursiveCond =
    cond: f: set:
    let
      go =
        path:
        mapAttrs (
          name: value:
          if isAttrs value && cond value then go (path ++ [ name ]) value else f (path ++ [ name ]) value
        );
    in
    go [ ] set;

  mapAttrsToListRecursiveCond =
    cond: f: set:
    let
      go =
        path: value:
        if path == [ ] || (isAttrs value && cond path value) then
          concatMap (name: go (path ++ [ name ]) value.${name}) (attrNames value)
        else
          [ (f path value) ];
    in
    go [ ] set;

  genAttrs = names: f: genAttrs' names (name: nameValuePair name (f name));
  genAttrs' = xs: f: listToAttrs (map f xs);

  recursiveUpdateUntil =
    stop: left: right:
    let
      go =
        path: l: r:
        l
        // mapAttrs (
          name: new:
          let
            here = path ++ [ name ];
            old = l.${name};
          in
          if !(l ? ${name}) || stop here old new then new else go here old new
        ) r;
    in
    go [ ] left right;

  # Written out, not by recursiveUpdateUntil: it is on the way of every freeform configuration.
  recursiveUpdate =
    left: right:
    left
    // mapAttrs (
      name: new:
      if isAttrs new && left ? ${name} && isAttrs left.${name} then
        recursiveUpdate left.${name} new
      else
        new
    ) right;

  foldlAttrs =
    f: init: set:
    foldl' (acc: name: f acc name set.${name}) init (attrNames set);

  collect =
    keep: x:
    if keep x then
      [ x ]
    else if isAttrs x then
      concatMap (collect keep) (attrValues x)
    else
      [ ];

  cartesianProduct =
    sets:
    foldl' (rows: name: concatMap (row: map (value: row // { ${name} = value; }) sets.${name}) rows) [
      { }
    ] (attrNames sets);

  getFirstOutput =
    candidates: pkg:
    let
      found = builtins.filter (name: hasAttr name pkg) candidates;
    in
    if !isAttrs pkg || pkg.outputSpecified or false || found == [ ] then pkg else pkg.${head found};

  getOutput =
    output: pkg:
    if !isAttrs pkg || pkg.outputSpecified or false then pkg else pkg.${output} or pkg.out or pkg;

  showAttrPath =
    path:
    if path == [ ] then
      "<root attribute path>"
    else
      lib.concatMapStringsSep "." lib.escapeNixIdentifier path;

  updateManyAttrsByPath =
    let
      go =
        prefix: default: hasValue: value: updates:
        let
          split = lib.partition (u: u.path == [ ]) updates;
          nested = builtins.groupBy (u: head u.path) split.wrong;
          withNested =
            if split.wrong == [ ] then
              value
            else if !hasValue then
              mapAttrs (
                name: us:
                go (prefix ++ [ name ]) default false null (map (u: u // { path = builtins.tail u.path; }) us)
              ) nested
            else if isAttrs value then
              value
              // mapAttrs (
                name: us:
                go (prefix ++ [ name ]) default (value ? ${name}) (value.${name} or null) (
                  map (u: u // { path = builtins.tail u.path; }) us
                )
              ) nested
            else
              throw "updateManyAttrsByPath: the value at `${showAttrPath prefix}' is updated within, but it is a ${builtins.typeOf value}, not a set";
          defined = hasValue || split.wrong != [ ];
        in
        if split.right == [ ] then
          withNested
        else
          (foldl'
            (state: u: {
              has = true;
              v = u.update (
                if state.has then
                  state.v
                else
                  throw "updateManyAttrsByPath: `${showAttrPath prefix}' has no value yet, but its update reads it"
              );
            })
            {
              has = defined;
              v = withNested;
            }
            split.right
          ).v;
    in
    updates: set: go [ ] null true set updates;
in
{
  inherit (builtins)
    attrNames
    listToAttrs
    hasAttr
    isAttrs
    getAttr
    attrValues
    mapAttrs
    removeAttrs
    intersectAttrs
    catAttrs
    zipAttrsWith
    ;
  inherit
    nameValuePair
    isDerivation
    attrByPath
    hasAttrByPath
    longestValidPathPrefix
    setAttrByPath
    filterAttrs
    filterAttrsRecursive
    mapAttrsToList
    mapAttrs'
    mapAttrsRecursiveCond
    mapAttrsToListRecursiveCond
    genAttrs
    genAttrs'
    recursiveUpdateUntil
    recursiveUpdate
    foldlAttrs
    collect
    cartesianProduct
    getFirstOutput
    getOutput
    showAttrPath
    updateManyAttrsByPath
    ;

  getAttrFromPath =
    path: set:
    let
      missing = throw "cannot find attribute `${lib.concatStringsSep "." path}'";
    in
    attrByPath path missing set;
  concatMapAttrs = f: set: foldl' (acc: new: acc // new) { } (mapAttrsToList f set);
  attrVals = names: set: map (name: set.${name}) names;
  getAttrs = names: set: genAttrs names (name: set.${name});
  foldAttrs =
    f: init: sets:
    zipAttrsWith (_: values: lib.foldr f init values) sets;
  mapCartesianProduct = f: sets: map f (cartesianProduct sets);
  attrsToList = mapAttrsToList nameValuePair;
  mapAttrsRecursive = mapAttrsRecursiveCond (_: true);
  mapAttrsToListRecursive = mapAttrsToListRecursiveCond (_: _: true);
  toDerivation =
    path:
    let
      stored = builtins.storePath path;
      result = {
        type = "derivation";
        name = builtins.unsafeDiscardStringContext (builtins.substring 33 (-1) (baseNameOf stored));
        outPath = stored;
        outputs = [ "out" ];
        out = result;
        outputName = "out";
      };
    in
    result;
  optionalAttrs = condition: set: if condition then set else { };
  zipAttrsWithNames =
    names: f: sets:
    listToAttrs (map (name: nameValuePair name (f name (builtins.catAttrs name sets))) names);
  zipAttrs = zipAttrsWith (_: values: values);
  mergeAttrsList =
    sets:
    let
      # Halving keeps the cost of `//` at n log n.
      go =
        from: n:
        if n == 0 then
          { }
        else if n == 1 then
          builtins.elemAt sets from
        else
          let
            half = n / 2;
          in
          go from half // go (from + half) (n - half);
    in
    go 0 (length sets);
  matchAttrs =
    pattern: set:
    isAttrs pattern
    && lib.all (
      name:
      let
        wanted = pattern.${name};
      in
      set ? ${name}
      && (
        if isAttrs wanted then
          isAttrs set.${name} && lib.matchAttrs wanted set.${name}
        else
          set.${name} == wanted
      )
    ) (attrNames pattern);
  overrideExisting = old: new: mapAttrs (name: value: new.${name} or value) old;
  getBin = getOutput "bin";
  getLib = getOutput "lib";
  getDev = getOutput "dev";
  getInclude = getFirstOutput [
    "include"
    "dev"
    "out"
  ];
  getStatic = getFirstOutput [
    "static"
    "lib"
    "out"
  ];
  getMan = getOutput "man";
  chooseDevOutputs = map lib.getDev;
  recurseIntoAttrs = set: set // { recurseForDerivations = true; };
  dontRecurseIntoAttrs = set: set // { recurseForDerivations = false; };
  unionOfDisjoint =
    x: y:
    let
      shared = builtins.intersectAttrs x y;
    in
    x // y // mapAttrs (name: _: throw "unionOfDisjoint: both sets have an attribute `${name}'") shared;
}
