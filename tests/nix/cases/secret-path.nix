# A file of the repository would be copied into the store, readable for all.
{ machine, ... }:
(machine [ { codchi.secrets.TOKEN.default = "${./secret-path.nix}"; } ]).config.codchi.build.needs
