# The package set of the base: nixpkgs' names for Debian's packages, every Debian package under its own name, and the
# functions of nixpkgs that make files and scripts.
{
  lib,
  system,
  path,
  config ? { },
  overlays ? [ ],
}:
let
  index = import ./index.nix { inherit path system; };
  seed =
    name:
    "${builtins.path {
      inherit name;
      path = path + "/seed/${system}/bin/${name}";
    }}";
  build = seed "codchi-base-build";

  debian = import ./debs.nix {
    inherit
      lib
      system
      index
      build
      ;
  };

  aliases = lib.mapAttrs (
    pname: entry:
    let
      here = entry // entry.${index.suite.suite} or { };
    in
    if here.debs or [ ] == [ ] then
      throw "the debian base has no package `${pname}'"
    else
      debian.package {
        inherit pname;
        inherit (here) debs;
        mainProgram = here.mainProgram or pname;
      }
  ) (builtins.fromJSON (builtins.readFile ./aliases.json));

  stage = final: _: {
    inherit lib system config;
    overlays = overlays;
    path = path;
    pkgs = final;
    _type = "pkgs";
    base = {
      inherit (index) suite names;
      inherit build;
      init = seed "codchi-base-init";
      packages = builtins.fromJSON (builtins.readFile ./system.json);
      inherit (debian) raw package;
    };
    extend = overlay: final.appendOverlays [ overlay ];
    appendOverlays =
      more:
      import ./. {
        inherit
          lib
          system
          path
          config
          ;
        overlays = overlays ++ more;
      };
  };

  layers = [
    (_: _: debian.debs)
    (_: _: aliases)
    stage
    (import ./builders.nix)
    (import ./platform.nix)
    (import ./formats.nix)
    (import ./languages.nix)
  ]
  ++ overlays;
in
lib.fix (lib.foldl' (lib.flip lib.extends) (_: { }) layers)
