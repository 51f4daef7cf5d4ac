{ machine, ... }:
(machine [ ../fixtures/everything.nix ]).config.codchi.build.needs
