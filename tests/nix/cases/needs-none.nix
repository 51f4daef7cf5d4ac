{ machine, ... }: (machine [ ]).config.codchi.build.needs
