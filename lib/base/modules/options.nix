# Options of the kinds that modules declare over and over; each takes its description last.
{ lib }:
let
  inherit (lib) mkOption types;
  option =
    type: default: description:
    mkOption { inherit type default description; };
in
{
  yes = option types.bool;
  strings = option (types.listOf types.str) [ ];
  lines = option types.lines "";
  # What NixOS has and nothing here looks at.
  free = option (types.lazyAttrsOf types.anything) { };
}
