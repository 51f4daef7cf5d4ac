# needs: packages
# What the OCI driver renders, which codchi-runtime reads in its own tests. What differs between bases is fixed here.
{ lib, machines, ... }:
(machines [
  {
    users.groups.tty.gid = lib.mkForce 5;
    codchi = {
      resources = {
        memory = "2G";
        cpus = 1.5;
        tasks = 4096;
      };
      # No device comes of it: nobody was asked.
      kvm.enable = true;
    };
  }
]).oci.config.codchi.build.manifest.engine
