# needs: packages
{ machine, ... }:
(machine [ { codchi.mounts."/nix/x".source = "~/x"; } ]).config.codchi.build.evaluation.drvPath
