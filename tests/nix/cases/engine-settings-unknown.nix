{ machine, ... }:
(machine [ { codchi.driver.settings.native.enviroment.A = "1"; } ])
.config.codchi.build.manifest.engine
