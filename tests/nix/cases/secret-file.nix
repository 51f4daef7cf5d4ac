# needs: packages
{ machine, ... }:
(machine [
  {
    codchi.secrets.key = {
      kind = "file";
      path = "relative/key";
    };
  }
]).config.codchi.build.evaluation.drvPath
