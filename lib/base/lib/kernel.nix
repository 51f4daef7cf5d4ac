# Values of kernel configuration.
{ lib }:
let
  state = tristate: {
    inherit tristate;
    optional = false;
  };
in
{
  yes = state "y";
  no = state "n";
  module = state "m";
  unset = state null;
  freeform = text: {
    freeform = text;
    optional = false;
  };
  option = x: x // { optional = true; };
  whenHelpers =
    version:
    let
      when = condition: lib.mkIf condition;
    in
    {
      whenAtLeast = v: when (lib.versionAtLeast version v);
      whenOlder = v: when (lib.versionOlder version v);
      whenBetween = low: high: when (lib.versionAtLeast version low && lib.versionOlder version high);
    };
}
