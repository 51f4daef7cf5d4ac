# Strings.
{ lib }:
let
  inherit (builtins)
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isList
    isString
    length
    match
    replaceStrings
    split
    stringLength
    substring
    tail
    ;

  asciiTable = import ./ascii.nix;

  stringToCharacters = s: genList (i: substring i 1 s) (stringLength s);
  lowerChars = stringToCharacters "abcdefghijklmnopqrstuvwxyz";
  upperChars = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

  concatStrings = concatStringsSep "";
  concatMapStrings = f: list: concatStrings (map f list);
  concatMapStringsSep =
    sep: f: list:
    concatStringsSep sep (map f list);

  hasPrefix = prefix: s: substring 0 (stringLength prefix) s == prefix;
  hasSuffix =
    suffix: s:
    let
      n = stringLength suffix;
      size = stringLength s;
    in
    size >= n && substring (size - n) n s == suffix;

  escape = chars: replaceStrings chars (map (c: "\\${c}") chars);
  escapeRegex = escape (stringToCharacters "\\[{()^$?*+|.");

  # A shell word. Words of harmless characters stay as they are.
  escapeShellArg =
    arg:
    let
      s = toString arg;
    in
    if match "[[:alnum:],._+:@%/-]+" s == null then "'${replaceStrings [ "'" ] [ "'\\''" ] s}'" else s;

  isValidPosixName = name: match "[a-zA-Z_][a-zA-Z0-9_]*" name != null;

  toShellVar =
    name: value:
    if !isValidPosixName name then
      throw "toShellVar: `${name}' is not a name that a shell variable can have"
    else if builtins.isAttrs value && !isStringLike value then
      "declare -A ${name}=(${
        lib.concatStringsSep " " (
          lib.mapAttrsToList (n: v: "[${escapeShellArg n}]=${escapeShellArg v}") value
        )
      })"
    else if isList value then
      "declare -a ${name}=(${lib.escapeShellArgs value})"
    else
      "${name}=${escapeShellArg value}";

  isStringLike = x: isString x || builtins.isPath x || x ? outPath || x ? __toString;
  isConvertibleWithToString =
    x:
    isStringLike x
    || elem (builtins.typeOf x) [
      "null"
      "int"
      "float"
      "bool"
    ]
    || (isList x && lib.all isConvertibleWithToString x);

  escapeNixString = s: escape [ "$" ] (builtins.toJSON s);
  keywords = [
    "assert"
    "else"
    "if"
    "in"
    "inherit"
    "let"
    "or"
    "rec"
    "then"
    "with"
  ];
  escapeNixIdentifier =
    s: if match "[a-zA-Z_][a-zA-Z0-9_'-]*" s != null && !elem s keywords then s else escapeNixString s;

  splitString =
    sep: s:
    let
      parts = filter isString (split (escapeRegex (toString sep)) (toString s));
    in
    map (lib.addContextFrom s) parts;

  makeSearchPath =
    sub: packages: concatStringsSep ":" (map (p: p + "/" + sub) (filter (p: p != null) packages));
  makeSearchPathOutput =
    output: sub: packages:
    makeSearchPath sub (map (lib.getOutput output) packages);

  trimWith =
    {
      start ? false,
      end ? false,
    }:
    s:
    let
      blank = "[ \t\r\n]*";
      left = if start then blank else "";
      # The middle is greedy, so the last character kept is no blank.
      kept = if end then match "${left}(.*[^ \t\r\n])${blank}" s else match "${left}(.*)" s;
      onlyBlank = match blank s != null;
    in
    if end && onlyBlank then
      ""
    else if !end && !start then
      s
    else
      head kept;

  versionOlder = a: b: builtins.compareVersions b a == 1;

  floatToString =
    f:
    let
      fixed = toString f;
      exact = builtins.toJSON f;
    in
    if f == builtins.fromJSON fixed then fixed else exact;

  commonPrefixLength =
    a: b:
    let
      n = lib.min (stringLength a) (stringLength b);
      go = i: if i == n || substring i 1 a != substring i 1 b then i else go (i + 1);
    in
    go 0;
  commonSuffixLength =
    a: b:
    let
      n = lib.min (stringLength a) (stringLength b);
      at = s: i: substring (stringLength s - i - 1) 1 s;
      go = i: if i == n || at a i != at b i then i else go (i + 1);
    in
    go 0;

  # Edit distance by rows: one list per character of the first string.
  levenshtein =
    a: b:
    let
      n = stringLength b;
      firstRow = genList (j: j) (n + 1);
      nextRow =
        row: i:
        let
          c = substring i 1 a;
          cells =
            foldl'
              (
                acc: j:
                let
                  cost = if c == substring j 1 b then 0 else 1;
                  best = lib.min (lib.min (acc.last + 1) (elemAt row (j + 1) + 1)) (elemAt row j + cost);
                in
                builtins.seq best {
                  last = best;
                  list = acc.list ++ [ best ];
                }
              )
              {
                last = i + 1;
                list = [ (i + 1) ];
              }
              (genList (j: j) n);
        in
        cells.list;
    in
    lib.last (foldl' nextRow firstRow (genList (i: i) (stringLength a)));

  toIntWith =
    what: zeroOk: s:
    let
      found = match "[[:space:]]*(-?[[:digit:]]+)[[:space:]]*" s;
      digits = head found;
      leadingZero = found != null && match "-?0[[:digit:]]+" digits != null;
      decimal =
        let
          parts = match "(-?)0*([[:digit:]]+)" digits;
        in
        builtins.fromJSON (if elemAt parts 1 == "" then "0" else (head parts) + (elemAt parts 1));
    in
    if found == null then
      throw "${what}: Could not convert ${escapeNixString s} to int."
    else if leadingZero && !zeroOk then
      throw "${what}: Ambiguity in interpretation of ${escapeNixString s} between octal and zero padded integer."
    else
      decimal;

  fixedWidthString =
    width: filler: s:
    let
      size = stringLength s;
    in
    if size > width then
      throw "fixedWidthString: `${s}' is longer than ${toString width}"
    else
      concatStrings (genList (_: filler) ((width - size) / (lib.max 1 (stringLength filler)))) + s;
in
{
  inherit (builtins)
    compareVersions
    concatStringsSep
    elem
    elemAt
    filter
    fromJSON
    genList
    head
    isAttrs
    isList
    isPath
    isString
    match
    parseDrvName
    readFile
    replaceStrings
    split
    storeDir
    stringLength
    substring
    tail
    toJSON
    typeOf
    unsafeDiscardStringContext
    appendContext
    concatMap
    ;
  inherit
    stringToCharacters
    lowerChars
    upperChars
    concatStrings
    concatMapStrings
    concatMapStringsSep
    hasPrefix
    hasSuffix
    escape
    escapeRegex
    escapeShellArg
    isValidPosixName
    toShellVar
    isStringLike
    isConvertibleWithToString
    escapeNixString
    escapeNixIdentifier
    splitString
    makeSearchPath
    makeSearchPathOutput
    trimWith
    versionOlder
    floatToString
    commonPrefixLength
    commonSuffixLength
    levenshtein
    fixedWidthString
    ;

  join = concatStringsSep;
  concatImapStrings = f: list: concatStrings (lib.imap1 f list);
  concatImapStringsSep =
    sep: f: list:
    concatStringsSep sep (lib.imap1 f list);
  concatMapAttrsStringSep =
    sep: f: set:
    concatStringsSep sep (lib.mapAttrsToList f set);
  concatLines = concatMapStrings (line: line + "\n");
  intersperse =
    sep: list:
    if length list < 2 then
      list
    else
      tail (
        concatMap (x: [
          sep
          x
        ]) list
      );
  replaceString = from: to: replaceStrings [ from ] [ to ];
  replicate = n: s: concatStrings (genList (_: s) n);
  trim = trimWith {
    start = true;
    end = true;
  };
  makeLibraryPath = makeSearchPathOutput "lib" "lib";
  makeIncludePath = makeSearchPathOutput "dev" "include";
  makeBinPath = makeSearchPathOutput "bin" "bin";
  normalizePath =
    s:
    let
      step = acc: c: if c == "/" && hasSuffix "/" acc then acc else acc + c;
    in
    foldl' step "" (stringToCharacters s);
  optionalString = condition: s: if condition then s else "";
  hasInfix = infix: s: length (split (escapeRegex (toString infix)) (toString s)) > 1;
  stringAsChars = f: s: concatStrings (map f (stringToCharacters s));
  charToInt = c: asciiTable.${c};
  escapeC =
    chars:
    replaceStrings chars (
      map (c: "\\x${fixedWidthString 2 "0" (lib.toLower (lib.toHexString asciiTable.${c}))}") chars
    );
  escapeURL =
    let
      plain = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";
      reserved = removeAttrs asciiTable plain;
      names = builtins.attrNames reserved;
    in
    replaceStrings names (map (c: "%${fixedWidthString 2 "0" (lib.toHexString reserved.${c})}") names);
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  toShellVars = vars: concatStringsSep "\n" (lib.mapAttrsToList toShellVar vars);
  escapeXML = replaceStrings [ "\"" "'" "<" ">" "&" ] [ "&quot;" "&apos;" "&lt;" "&gt;" "&amp;" ];
  toLower = replaceStrings upperChars lowerChars;
  toUpper = replaceStrings lowerChars upperChars;
  toSentenceCase =
    s:
    if !isString s then
      throw "toSentenceCase does only accepts string values, but got ${builtins.typeOf s}"
    else
      lib.toUpper (substring 0 1 s) + lib.toLower (substring 1 (-1) s);
  toCamelCase =
    s:
    if !isString s then
      throw "toCamelCase: takes a string, not a ${builtins.typeOf s}"
    else
      let
        capital = word: lib.toUpper (substring 0 1 word) + substring 1 (-1) word;
        words = filter (w: isString w && w != "") (split "[^A-Za-z0-9]+" s);
        humps = concatMap (word: filter (x: x != "") (lib.flatten (split "([A-Z][^A-Z]*)" word))) words;
        lowered = map lib.toLower humps;
      in
      if humps == [ ] then "" else concatStrings ([ (head lowered) ] ++ map capital (tail lowered));
  addContextFrom = source: target: substring 0 0 source + target;
  splitStringBy =
    cut: keep: s:
    let
      chars = stringToCharacters s;
      n = length chars;
      step =
        acc: i:
        let
          previous = if i == 0 then "" else elemAt chars (i - 1);
          current = elemAt chars i;
        in
        if cut previous current then
          {
            done = acc.done ++ [ acc.word ];
            word = if keep then current else "";
          }
        else
          acc // { word = acc.word + current; };
      end = foldl' step {
        done = [ ];
        word = "";
      } (genList (i: i) n);
    in
    map (lib.addContextFrom s) (end.done ++ [ end.word ]);
  removePrefix =
    prefix: s: if hasPrefix prefix s then substring (stringLength prefix) (stringLength s) s else s;
  removeSuffix =
    suffix: s: if hasSuffix suffix s then substring 0 (stringLength s - stringLength suffix) s else s;
  versionAtLeast = a: b: !versionOlder a b;
  getName =
    x:
    if isString x then
      (builtins.parseDrvName x).name
    else
      x.pname or (builtins.parseDrvName x.name).name;
  getVersion =
    x:
    if isString x then
      (builtins.parseDrvName x).version
    else
      x.version or (builtins.parseDrvName x.name).version;
  nameFromURL =
    url: sep:
    let
      file = lib.last (splitString "/" url);
      name = head (splitString sep file);
    in
    if name == file then throw "nameFromURL: `${file}' has no `${sep}' to cut at" else name;
  cmakeOptionType =
    type: name: value:
    "-D${name}:${lib.toUpper type}=${value}";
  cmakeBool = name: value: lib.cmakeOptionType "bool" name (if value then "TRUE" else "FALSE");
  cmakeFeature = lib.cmakeOptionType "string";
  mesonOption = name: value: "-D${name}=${value}";
  mesonBool = name: value: lib.mesonOption name (lib.boolToString value);
  mesonEnable = name: value: lib.mesonOption name (if value then "enabled" else "disabled");
  enableFeature = yes: name: "--${if yes then "enable" else "disable"}-${name}";
  enableFeatureAs =
    yes: name: value:
    if yes then "${lib.enableFeature true name}=${value}" else lib.enableFeature false name;
  withFeature = yes: name: "--${if yes then "with" else "without"}-${name}";
  withFeatureAs =
    yes: name: value:
    if yes then "${lib.withFeature true name}=${value}" else lib.withFeature false name;
  fixedWidthNumber = width: n: fixedWidthString width "0" (toString n);
  isStorePath =
    x:
    isStringLike x
    && (
      let
        s = toString x;
      in
      substring 0 1 s == "/" && dirOf s == builtins.storeDir || match "/[0-9a-z]{52}" s != null
    );
  isInt = builtins.isInt;
  toInt = toIntWith "toInt" false;
  toIntBase10 = toIntWith "toIntBase10" true;
  fileContents = file: lib.removeSuffix "\n" (builtins.readFile file);
  sanitizeDerivationName =
    s:
    let
      bare = builtins.unsafeDiscardStringContext (toString s);
      undotted = head (match "\\.*(.*)" bare);
      clean = concatMapStrings (x: if isList x then "-" else x) (split "[^[:alnum:]+._?=-]+" undotted);
      size = stringLength clean;
      cut = substring (lib.max (size - 207) 0) (-1) clean;
    in
    if cut == "" then "unknown" else cut;
  levenshteinAtMost =
    k: a: b:
    let
      apart = stringLength a - stringLength b;
    in
    (if apart < 0 then -apart else apart) <= k && levenshtein a b <= k;
}
