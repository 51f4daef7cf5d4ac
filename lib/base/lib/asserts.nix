# Assertions for use with `assert`.
{ lib }:
let
  assertMsg = condition: message: if condition then true else throw message;
in
{
  inherit assertMsg;
  assertOneOf =
    name: value: allowed:
    assertMsg (lib.elem value allowed) "${name} must be one of ${
      lib.generators.toPretty { } allowed
    }, but is: ${lib.generators.toPretty { } value}";
  assertEachOneOf =
    name: values: allowed:
    assertMsg (lib.all (value: lib.elem value allowed) values)
      "each element in ${name} must be one of ${lib.generators.toPretty { } allowed}, but is: ${
        lib.generators.toPretty { } values
      }";
  checkAssertWarn =
    assertions: warnings: value:
    let
      failed = map (a: a.message) (lib.filter (a: !a.assertion) assertions);
    in
    if failed != [ ] then
      throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (m: "- ${m}") failed}"
    else
      lib.showWarnings warnings value;
}
