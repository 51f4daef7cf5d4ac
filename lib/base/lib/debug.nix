# Looking at values while they are evaluated, and running tables of tests.
{ lib }:
let
  inherit (builtins) trace;

  # A value cut off below a depth, fit for printing.
  cut =
    depth: v:
    if builtins.isList v then
      if depth == 0 then "[…]" else map (cut (depth - 1)) v
    else if builtins.isAttrs v then
      if lib.isDerivation v then
        v
      else if depth == 0 then
        "{…}"
      else
        builtins.mapAttrs (_: cut (depth - 1)) v
    else
      v;

  traceSeq = x: y: trace (builtins.deepSeq x x) y;
  traceSeqN =
    depth: x: y:
    let
      shown = lib.generators.toPretty { multiline = false; } (cut depth x);
    in
    trace (builtins.seq shown shown) y;

  # Expressions and what is expected of them. Names must start with `test`.
  runTests =
    tests:
    lib.concatLists (
      lib.mapAttrsToList (
        name: test:
        let
          wanted = tests ? tests && !lib.elem name tests.tests;
        in
        if lib.hasPrefix "test" name && name != "tests" && !wanted && test.expr != test.expected then
          [
            {
              inherit name;
              inherit (test) expected;
              result = test.expr;
            }
          ]
        else
          [ ]
      ) tests
    );
in
{
  inherit (builtins) addErrorContext unsafeGetAttrPos;
  inherit
    trace
    traceSeq
    traceSeqN
    runTests
    ;
  traceIf =
    condition: message: x:
    if condition then trace message x else x;
  traceValFn = f: x: trace (f x) x;
  traceVal = x: trace x x;
  traceValSeqFn = f: x: traceSeq (f x) x;
  traceValSeq = x: traceSeq x x;
  traceValSeqNFn =
    f: depth: x:
    traceSeqN depth (f x) x;
  traceValSeqN = depth: x: traceSeqN depth x x;
  traceFnSeqN =
    depth: name: f: x:
    let
      result = f x;
    in
    traceSeqN (depth + 1) {
      fn = name;
      from = x;
      to = result;
    } result;
  testAllTrue = expr: {
    inherit expr;
    expected = map (_: true) expr;
  };
  throwTestFailures =
    {
      failures,
      description ? "tests",
      ...
    }:
    if failures == [ ] then
      null
    else
      throw "${toString (lib.length failures)} ${description} failed:\n${
        lib.concatMapStringsSep "\n" (lib.generators.toPretty { }) failures
      }";
}
