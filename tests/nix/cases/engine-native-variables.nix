# needs: packages
# The native driver's settings use its variables, each and only those.
{ codchi, machine, ... }:
codchi.engine.variableErrors codchi.drivers.native (machine [ ]).config.codchi.build.manifest.engine
