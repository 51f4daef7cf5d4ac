# needs: packages
# A machine that sees only its closure has no Nix inside and no endpoint.
{ lib, machine, ... }:
let
  inherit (machine [ { codchi.isolation.store = "closure"; } ]) config;
  inherit (config.codchi.build.manifest.engine) mounts;
in
{
  nix = config.nix.enable;
  targets = map (mount: mount.target) (lib.filter (mount: mount.kind == "bind") mounts);
  parts = map (mount: mount.target) (lib.filter (mount: mount.closure or false) mounts);
  unit = config.systemd.units."nix-store-.mount".text;
  shared = (machine [ ]).config.systemd.units ? "nix-store-.mount";
}
