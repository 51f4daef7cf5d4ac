# Making functions and package sets that can be changed afterwards.
{ lib }:
let
  inherit (builtins) intersectAttrs isAttrs isFunction;

  makeOverridable =
    f:
    let
      withArgs = lib.mirrorFunctionArgs f;
      # A function that is a set keeps its other attributes.
      keep = g: if isAttrs f then f // g else g;
    in
    keep (
      withArgs (
        args:
        let
          result = f args;
          change = new: args // (if lib.isFunction new then new args else new);
          again = g: makeOverridable (withArgs (a: g (f a))) args;
          extra = {
            override = withArgs (new: makeOverridable f (change new));
            overrideDerivation = g: again (drv: lib.overrideDerivation drv g);
          };
        in
        if isAttrs result then
          result
          // extra
          // lib.optionalAttrs (result ? overrideAttrs) {
            overrideAttrs = g: again (drv: drv.overrideAttrs g);
          }
        else if lib.isFunction result then
          lib.setFunctionArgs result (lib.functionArgs result) // extra
        else
          result
      )
    );

  callPackageWith =
    auto: target: args:
    let
      f = if lib.isFunction target then target else import target;
      wanted = lib.functionArgs f;
      given = intersectAttrs wanted auto // args;
      missing = lib.attrNames (lib.filterAttrs (name: optional: !optional && !(given ? ${name})) wanted);
      where =
        if lib.isFunction target then
          "a function"
        else
          toString target
          + lib.optionalString (lib.pathType (/. + toString target) == "directory") "/default.nix";
      near =
        name: lib.take 3 (lib.filter (lib.strings.levenshteinAtMost 2 name) (lib.attrNames (auto // args)));
      hint =
        let
          names = near (lib.head missing);
        in
        lib.optionalString (names != [ ])
          ", did you mean ${lib.concatMapStringsSep " or " (n: "\"${n}\"") names}?";
    in
    if missing == [ ] then
      makeOverridable f given
    else
      throw "lib.customisation.callPackageWith: Function called without required argument \"${lib.head missing}\" of ${where}${hint}";

  makeScope =
    newScope: f:
    let
      # What the scope defines itself wins, its own callPackage too.
      self = {
        newScope = scope: newScope (self // scope);
        callPackage = self.newScope { };
      }
      // f self
      // {
        overrideScope = g: makeScope newScope (lib.extends g f);
        packages = f;
      };
    in
    self;

  makeScopeWithSplicing' =
    {
      splicePackages,
      newScope,
    }:
    {
      otherSplices,
      keep ? _: { },
      extra ? _: { },
      f,
    }:
    let
      self = f self // {
        newScope = scope: newScope (self // scope);
        callPackage = newScope self;
        overrideScope =
          g:
          lib.makeScopeWithSplicing' { inherit splicePackages newScope; } {
            inherit otherSplices keep extra;
            f = lib.extends g f;
          };
        packages = f;
      };
    in
    self // extra self // keep self;
in
{
  inherit
    makeOverridable
    callPackageWith
    makeScope
    makeScopeWithSplicing'
    ;
  callPackagesWith =
    auto: target: args:
    let
      f = if lib.isFunction target then target else import target;
      given = intersectAttrs (lib.functionArgs f) auto // args;
      plain = f given;
    in
    if lib.isDerivation plain then
      throw "callPackages: the function gives one package, use callPackage"
    else
      builtins.mapAttrs (
        name: value:
        if isAttrs value then makeOverridable (lib.mirrorFunctionArgs f (a: (f a).${name})) given else value
      ) plain;
  makeScopeWithSplicing =
    splicePackages: newScope: otherSplices: keep: extra: f:
    makeScopeWithSplicing' { inherit splicePackages newScope; } {
      inherit
        otherSplices
        keep
        extra
        f
        ;
    };
  overrideDerivation =
    drv: f:
    let
      new = derivation (drv.drvAttrs // f drv);
    in
    lib.flip (lib.extendDerivation (builtins.seq drv.drvPath true)) new (
      {
        meta = drv.meta or { };
        passthru = drv.passthru or { };
      }
      // drv.passthru or { }
    );
  extendDerivation =
    condition: passthru: drv:
    let
      outputs = drv.outputs or [ "out" ];
      shared = drv // builtins.listToAttrs list // { all = map (x: x.value) list; } // passthru;
      outputOf = name: {
        inherit name;
        value =
          shared
          // {
            inherit (drv.${name}) type outputName;
            outputSpecified = true;
            drvPath =
              assert condition;
              drv.${name}.drvPath;
            outPath =
              assert condition;
              drv.${name}.outPath;
          }
          // lib.optionalAttrs (passthru ? overrideAttrs) {
            overrideAttrs = f: (passthru.overrideAttrs f).${name};
          };
      };
      list = map outputOf outputs;
    in
    shared
    // {
      drvPath =
        assert condition;
        drv.drvPath;
      outPath =
        assert condition;
        drv.outPath;
    };
  extendMkDerivation =
    {
      constructDrv,
      excludeDrvArgNames ? [ ],
      excludeFunctionArgNames ? [ ],
      extendDrvArgs,
      inheritFunctionArgs ? true,
      transformDrv ? lib.id,
    }:
    let
      own = lib.functionArgs (extendDrvArgs { });
      below = lib.functionArgs constructDrv;
    in
    lib.setFunctionArgs (
      fpargs:
      transformDrv (
        constructDrv (
          lib.extends (final: prev: removeAttrs (prev // extendDrvArgs final prev) excludeDrvArgNames) (
            lib.toFunction fpargs
          )
        )
      )
    ) (removeAttrs (lib.optionalAttrs inheritFunctionArgs below // own) excludeFunctionArgNames);
  hydraJob =
    drv:
    if drv == null then
      null
    else
      let
        outputs = drv.outputs or [ "out" ];
        keep = d: {
          inherit (d)
            name
            system
            outPath
            drvPath
            type
            ;
          meta = d.meta or { };
          outputName = d.outputName or "out";
          inherit outputs;
        };
      in
      keep drv // lib.genAttrs outputs (o: keep drv.${o});
  mapCrossIndex = f: splices: builtins.mapAttrs (_: f) splices;
  renameCrossIndexFrom =
    prefix: x:
    lib.listToAttrs (
      map
        (pair: {
          name = pair;
          value = x."${prefix}${lib.toSentenceCase (lib.substring 0 1 pair)}${lib.substring 1 (-1) pair}";
        })
        [
          "buildBuild"
          "buildHost"
          "buildTarget"
          "hostHost"
          "hostTarget"
          "targetTarget"
        ]
    );
  renameCrossIndexTo =
    prefix: x:
    lib.mapAttrs' (
      name: value:
      lib.nameValuePair "${prefix}${lib.toUpper (lib.substring 0 1 name)}${lib.substring 1 (-1) name}" value
    ) x;
}
