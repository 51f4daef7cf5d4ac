# A store path in the middle of a value is one, too.
{ machine, ... }:
(machine [ { codchi.secrets.TOKEN.default = "file://${builtins.storeDir}/x"; } ])
.config.codchi.build.needs
