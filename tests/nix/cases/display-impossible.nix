# needs: packages
{ machines, ... }:
(machines [
  {
    codchi = {
      display.wayland.enable = true;
      requiredCapabilities = [ "display" ];
    };
  }
]).qemu.config.codchi.build.evaluation.drvPath
