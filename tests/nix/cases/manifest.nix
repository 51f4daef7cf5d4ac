# needs: packages
# The whole manifest, which codchi-core reads in its own tests. What differs between bases is fixed here.
{ lib, machine, ... }:
let
  fixed = {
    codchi.build.base = lib.mkForce {
      name = "debian";
      label = "Debian 12 (bookworm)";
    };
    codchi.build.initScript = lib.mkForce null;
    codchi.initScript = lib.mkForce null;
    users.groups.tty.gid = lib.mkForce 5;
  };
in
(machine [
  ../fixtures/everything.nix
  fixed
]).config.codchi.build.manifest
