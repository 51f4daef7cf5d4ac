# Fake hashes, and a few old helpers that modules in the wild still use.
{ lib }:
let
  imap = lib.imap1;
in
{
  # The builtins that are reached through lib as well.
  inherit (builtins)
    baseNameOf
    convertHash
    dirOf
    getContext
    hasContext
    hashFile
    hashString
    placeholder
    readDir
    readFileType
    splitVersion
    toFile
    toString
    toXML
    tryEval
    fromTOML
    ;
  inherit imap;
  fakeHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
  fakeSha256 = lib.concatStrings (lib.replicate 64 "0");
  fakeSha512 = lib.concatStrings (lib.replicate 128 "0");
  maybeEnv =
    name: fallback:
    let
      value = builtins.getEnv name;
    in
    if value == "" then fallback else value;
  maybeAttr =
    name: fallback: set:
    set.${name} or fallback;
  maybeAttrNullable =
    set: name: fallback:
    if set == null then fallback else set.${name} or fallback;
  ifEnable = condition: value: if condition then value else null;
  condConcat =
    name: list: checker:
    if list == [ ] then
      name
    else if checker (lib.head list) then
      lib.condConcat (name + lib.head (lib.tail list)) (lib.drop 2 list) checker
    else
      lib.condConcat name (lib.drop 2 list) checker;
  nvs = name: value: lib.listToAttrs [ (lib.nameValuePair name value) ];
  setAttr =
    set: name: value:
    set // { ${name} = value; };
  nixType = builtins.typeOf;
  closePropagation =
    packages:
    map (entry: entry.val) (
      builtins.genericClosure {
        startSet = map (p: {
          key = p.outPath;
          val = p;
        }) (lib.filter (p: p != null) packages);
        operator =
          entry:
          lib.concatMap (
            p:
            if p == null then
              [ ]
            else
              [
                {
                  key = p.outPath;
                  val = p;
                }
              ]
          ) (entry.val.propagatedBuildInputs or [ ] ++ entry.val.propagatedNativeBuildInputs or [ ]);
      }
    );
}
