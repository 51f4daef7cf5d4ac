# needs: packages
{ machine, ... }:
(machine [
  {
    codchi.ports."80".host = 8080;
    codchi.ports."8080" = { };
  }
]).config.codchi.build.evaluation.drvPath
