# From the index to packages. A `.deb` is fetched by hash, unpacked once into a store path without references (so every
# machine shares it), and shown to modules as a package that names the unpacked paths of its whole closure: Nix's own
# reference scan then tells what a machine needs in /usr, whoever mentions the package.
{
  lib,
  system,
  index,
  build,
}:
let
  inherit (builtins) replaceStrings;

  # Nix names allow neither colons nor tildes.
  sane = replaceStrings [ ":" "~" ] [ "." "-" ];

  missing =
    name:
    throw "the debian base has no package `${name}' (${index.suite.label} has none of that name)";

  record =
    name:
    let
      found = index.record name;
    in
    if found == null then missing name else found;

  fetch =
    p:
    derivation {
      name = sane (baseNameOf p.f);
      system = "builtin";
      builder = "builtin:fetchurl";
      # The host adds the file by its hash beforehand, so nothing ever opens this address.
      url = "mirror://${index.suite.archives.${p.a}}/${replaceStrings [ "+" ] [ "%2b" ] p.f}";
      outputHash = p.h;
      outputHashAlgo = "sha256";
      outputHashMode = "flat";
      unpack = false;
      executable = false;
      preferLocalBuild = true;
    };

  unpack =
    name:
    let
      p = record name;
    in
    derivation {
      name = "deb-${name}-${sane p.v}";
      inherit system;
      builder = build;
      args = [ "unpack" ];
      __structuredAttrs = true;
      src = fetch p;
    };

  # Names are looked up once, however many closures they are in.
  raws = lib.genAttrs index.names unpack;
  raw = name: raws.${name} or (missing name);

  closure =
    names:
    map (x: x.key) (
      builtins.genericClosure {
        startSet = map (key: { inherit key; }) names;
        operator =
          x:
          let
            r = record x.key;
          in
          if r ? b then
            throw "the debian base has no working package `${x.key}' (${index.suite.label}: ${r.b})"
          else
            map (key: { inherit key; }) r.d;
      }
    );

  # package { pname = "git"; debs = [ "git" ]; mainProgram = "git"; }
  package =
    {
      pname,
      debs,
      mainProgram ? pname,
      # Other names for its programs: `{ fd = "fdfind"; }`.
      programs ? { },
      passthru ? { },
    }:
    let
      version = (record (builtins.head debs)).v;
      drv = derivation {
        name = sane "${pname}-${version}";
        inherit system;
        builder = build;
        args = [ "package" ];
        __structuredAttrs = true;
        preferLocalBuild = true;
        debs = map raw debs;
        closure = map raw (closure debs);
        inherit programs;
      };
      self =
        drv
        // {
          inherit pname version;
          debNames = debs;
          # The folder of unpacked files: what a setuid wrapper copies, since /usr allows none.
          unpacked = raw (builtins.head debs);
          meta = {
            inherit mainProgram;
            name = drv.name;
            description = "${lib.concatStringsSep ", " debs} of ${index.suite.label}";
            available = true;
            broken = false;
            unsupported = false;
            insecure = false;
            platforms = [ system ];
            outputsToInstall = [ "out" ];
          };
          override = _: self;
          overrideAttrs = _: self;
          overrideDerivation = _: self;
          # Debian's split into packages is not nixpkgs' into outputs: each output is the whole.
          dev = self;
          bin = self;
          lib = self;
          man = self;
          doc = self;
          info = self;
          data = self;
        }
        // passthru;
    in
    self;
in
{
  inherit
    package
    raw
    record
    missing
    closure
    ;
  debs = lib.genAttrs index.names (
    name:
    package {
      pname = name;
      debs = [ name ];
    }
  );
}
