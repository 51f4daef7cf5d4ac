# needs: packages
# What the LXD driver renders, which codchi-drivers reads in its own tests.
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
      driver.settings.lxd.config."limits.cpu.priority" = "5";
    };
  }
]).lxd.config.codchi.build.manifest.engine
