# needs: packages
# What the host asks of one evaluation.
{ lib, machine, ... }:
let
  evaluation = (machine [ ../fixtures/everything.nix ]).config.codchi.build.evaluation;
in
{
  keys = lib.attrNames evaluation;
  inherit (evaluation)
    version
    driver
    system
    stateVersion
    warnings
    ;
  isDerivation =
    lib.hasPrefix builtins.storeDir evaluation.drvPath && lib.hasSuffix ".drv" evaluation.drvPath;
}
