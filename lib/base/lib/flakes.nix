# References to flakes.
{ ... }:
{
  parseFlakeRef = builtins.parseFlakeRef or (_: throw "parseFlakeRef: this Nix has no flakes");
  flakeRefToString =
    builtins.flakeRefToString or (_: throw "flakeRefToString: this Nix has no flakes");
}
