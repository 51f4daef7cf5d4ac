# needs: packages
# A machine that sees only its closure has no Nix inside and no endpoint.
{ lib, machine, ... }:
let
  inherit (machine [ { codchi.isolation.store = "closure"; } ]) config;
in
{
  nix = config.nix.enable;
  targets = map (mount: mount.target) (
    lib.filter (mount: mount.kind == "bind") config.codchi.build.manifest.engine.mounts
  );
}
