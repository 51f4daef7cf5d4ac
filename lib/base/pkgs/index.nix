# The suite's packages, as the host resolved them: `record NAME` is null where the suite has none.
#
#   record = { v = version; f = path on the mirror; a = archive; h = sha256; s = bytes; d = [ names ]; }
{ path, system }:
let
  dir = path + "/index/${system}";
  read = file: builtins.fromJSON (builtins.readFile (dir + "/${file}"));
  digits = [
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
    "a"
    "b"
    "c"
    "d"
    "e"
    "f"
  ];
  core = read "core.json";
  # One file per first byte of the name's hash, so that a rare package costs one small file.
  shards = builtins.listToAttrs (
    builtins.concatMap (
      a:
      map (b: {
        name = a + b;
        value = read "shards/${a + b}.json";
      }) digits
    ) digits
  );
in
if !builtins.pathExists dir then
  throw "the debian base has no packages for `${system}'"
else
  {
    inherit core;
    suite = read "suite.json";
    names = read "names.json";
    # By alias, what another suite lends: { label; debs = [ names ]; records = { name = record; }; }
    lent = read "lent.json";
    record =
      name: core.${name} or (shards.${builtins.substring 0 2 (builtins.hashString "sha256" name)}.${name} or null);
  }
