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
    name: entry:
    let
      here = entry // entry.${index.suite.suite} or { };
      pname = lib.last (lib.splitString "." name);
    in
    if here.debs or [ ] == [ ] then
      throw "the debian base has no package `${name}'"
    else
      (if index.lent ? ${name} then debian.lent index.lent.${name} else debian.package) {
        inherit pname;
        inherit (here) debs;
        mainProgram = here.mainProgram or pname;
        programs = here.programs or { };
      }
  ) (builtins.fromJSON (builtins.readFile ./aliases.json));

  # Names with a dot are members of a set: `{ "xorg.xrandr" = ...; }` is `{ xorg = { xrandr = ...; }; }`.
  dotted = lib.filterAttrs (name: _: lib.hasInfix "." name) aliases;
  sets = lib.foldl' (
    all: name:
    let
      parts = lib.splitString "." name;
      set = lib.head parts;
    in
    all
    // {
      ${set} = all.${set} or { } // {
        ${lib.concatStringsSep "." (lib.tail parts)} = dotted.${name};
      };
    }
  ) { } (lib.attrNames dotted);

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
      inherit (debian) raw package closure;
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
    (_: _: removeAttrs aliases (lib.attrNames dotted))
    stage
    (import ./builders.nix)
    (import ./platform.nix)
    (import ./formats.nix)
    (import ./languages.nix)
    (_: prev: lib.mapAttrs (set: members: prev.${set} or { } // members) sets)
  ]
  ++ overlays;
in
lib.fix (lib.foldl' (lib.flip lib.extends) (_: { }) layers)
