# needs: packages
{ machine, ... }:
(machine [ { codchi.ports."80x".host = 8080; } ]).config.codchi.build.evaluation.drvPath
