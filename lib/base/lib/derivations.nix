# Derivations that are looked at before they are computed.
{ lib }:
{
  inherit (builtins) addDrvOutputDependencies unsafeDiscardOutputDependency;

  # A package whose name, outputs and meta are known without evaluating its derivation.
  lazyDerivation =
    args@{
      derivation,
      meta ? null,
      passthru ? { },
      outputs ? [ "out" ],
    }:
    let
      checked = lib.throwIfNot (
        derivation.type or null == "derivation"
      ) "lazyDerivation: the input must be a derivation." derivation;
    in
    {
      type = "derivation";
      inherit (checked)
        outputName
        outPath
        drvPath
        name
        system
        ;
      inherit outputs;
      meta = args.meta or checked.meta;
    }
    // lib.genAttrs outputs (o: checked.${o})
    // passthru;

  optionalDrvAttr = condition: value: if condition then value else null;

  warnOnInstantiate =
    message: drv:
    let
      drvs = lib.genAttrs (lib.intersectLists (lib.attrNames drv) (
        [
          "drvPath"
          "outPath"
        ]
        ++ drv.outputs or [ ]
      )) (name: lib.warn message drv.${name});
    in
    drv // drvs;
}
