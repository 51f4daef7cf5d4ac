# needs: packages
# Every driver's settings use its variables, each and only those.
{ codchi, machines, ... }:
builtins.mapAttrs (
  driver: machine:
  codchi.engine.variableErrors codchi.drivers.${driver} machine.config.codchi.build.manifest.engine
) (machines [ ])
