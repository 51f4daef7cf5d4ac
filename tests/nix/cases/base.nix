# needs: packages
# A machine says where its packages come from: the one that was taken, and no other.
{ machine, nixpkgs, ... }:
let
  inherit ((machine [ ]).config.codchi.build.evaluation) base;
in
{
  isNamed = base.label != "" && base.name == (if nixpkgs ? codchiBase then "debian" else "nixpkgs");
}
