# Small functions on functions, booleans and numbers, and facts about this library.
{ lib }:
let
  release = "26.05";
  codeName = "Base";

  hexDigits = [
    "0"
    "1"
    "2"
    "3"
    "4"
    "5"
    "6"
    "7"
    "8"
    "9"
    "A"
    "B"
    "C"
    "D"
    "E"
    "F"
  ];

  isFunction = f: builtins.isFunction f || (f ? __functor && isFunction (f.__functor f));

  warn = builtins.warn or (message: value: builtins.trace "evaluation warning: ${message}" value);

  # Digits of a non-negative number, most significant first.
  toBaseDigits =
    base: n:
    let
      go = i: if i < base then [ i ] else go (i / base) ++ [ (i - base * (i / base)) ];
    in
    if !builtins.isInt base || base < 2 then
      throw "toBaseDigits: the base is a whole number of at least 2"
    else if n < 0 then
      throw "toBaseDigits: negative numbers have no digits here"
    else
      go n;
in
{
  inherit (builtins)
    pathExists
    readFile
    isBool
    isInt
    isFloat
    add
    sub
    lessThan
    seq
    deepSeq
    genericClosure
    bitAnd
    bitOr
    bitXor
    ceil
    floor
    ;
  inherit
    isFunction
    warn
    release
    codeName
    toBaseDigits
    ;

  id = x: x;
  const = x: _: x;
  pipe = builtins.foldl' (value: f: f value);
  flip =
    f: a: b:
    f b a;
  concat = x: y: x ++ y;
  "or" = x: y: x || y;
  and = x: y: x && y;
  xor = x: y: (!x) != (!y);
  bitNot = builtins.sub (-1);
  boolToString = b: if b then "true" else "false";
  boolToYesNo = b: if b then "yes" else "no";
  mergeAttrs = x: y: x // y;
  mapNullable = f: x: if x == null then null else f x;
  defaultTo = fallback: x: if x == null then fallback else x;
  min = x: y: if x < y then x else y;
  max = x: y: if x > y then x else y;
  mul = x: y: x * y;
  div = x: y: x / y;
  mod = n: d: n - d * (n / d);
  compare =
    a: b:
    if a < b then
      -1
    else if a > b then
      1
    else
      0;
  # Compares by `yes`/`no` when the predicate tells two values apart or holds for both or neither.
  splitByAndCompare =
    p: yes: no: a: b:
    if p a then
      if p b then yes a b else -1
    else if p b then
      1
    else
      no a b;

  importJSON = path: builtins.fromJSON (builtins.readFile path);
  importTOML = path: fromTOML (builtins.readFile path);

  version = release + "pre-base";
  versionSuffix = "pre-base";
  nixpkgsVersion = release + "pre-base";
  oldestSupportedRelease = 2511;
  oldestSupportedReleaseIsAtLeast = n: n <= 2511;
  isInOldestRelease = n: n <= 2511;
  revisionWithDefault = fallback: fallback;
  inNixShell = builtins.getEnv "IN_NIX_SHELL" != "";
  inPureEvalMode = !builtins ? currentSystem;

  warnIf = condition: message: if condition then warn message else x: x;
  warnIfNot = condition: message: if condition then x: x else warn message;
  info = message: builtins.trace "INFO: ${message}";
  showWarnings = warnings: value: builtins.foldl' (v: w: warn w v) value warnings;
  throwIf = condition: message: if condition then throw message else x: x;
  throwIfNot = condition: message: if condition then x: x else throw message;
  checkListOfEnum =
    what: allowed: given: value:
    let
      unknown = lib.subtractLists allowed given;
    in
    if unknown == [ ] then
      value
    else
      throw "${what}: ${lib.concatStringsSep ", " (map lib.escapeNixString unknown)} unexpected; valid ones: ${lib.concatStringsSep ", " (map lib.escapeNixString allowed)}";

  setFunctionArgs = f: args: {
    __functor = _: f;
    __functionArgs = args;
  };
  functionArgs =
    f:
    if f ? __functor then
      f.__functionArgs or (lib.functionArgs (f.__functor f))
    else
      builtins.functionArgs f;
  mirrorFunctionArgs =
    f:
    let
      args = lib.functionArgs f;
    in
    g: lib.setFunctionArgs g args;
  toFunction = x: if isFunction x then x else _: x;

  fromHexString =
    text:
    let
      bare = lib.removePrefix "0x" (lib.toLower text);
      digits = lib.listToAttrs (lib.imap0 (i: d: lib.nameValuePair (lib.toLower d) i) hexDigits);
    in
    if builtins.match "[0-9a-f]+" bare == null then
      throw "fromHexString: `${text}' is not a hexadecimal number"
    else
      builtins.foldl' (sum: d: sum * 16 + digits.${d}) 0 (lib.stringToCharacters bare);
  toHexString = n: lib.concatMapStrings (builtins.elemAt hexDigits) (toBaseDigits 16 n);
}
