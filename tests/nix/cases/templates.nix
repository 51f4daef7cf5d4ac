# needs: packages
# Every template's whole system evaluates.
{ lib, machine, ... }:
lib.mapAttrs (
  _: template:
  lib.hasSuffix ".drv"
    (machine [ (template.path + "/machine.nix") ]).config.codchi.build.evaluation.drvPath
) (import ../../../docs/templates)
