# needs: packages
{ machine, ... }:
(machine [ { codchi.secrets."my-token".kind = "env"; } ]).config.codchi.build.evaluation.drvPath
