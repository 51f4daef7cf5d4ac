# needs: packages
# What the Incus driver renders, which codchi-drivers reads in its own tests.
{ machines, ... }:
(machines [
  {
    codchi = {
      resources = {
        memory = "2G";
        cpus = 1.5;
        disk = "20G";
        tasks = 4096;
      };
      # No device comes of it: nobody was asked.
      kvm.enable = true;
      driver.settings.incus.config."limits.cpu.priority" = "5";
    };
  }
]).incus.config.codchi.build.manifest.engine
