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
      # The host adds the file by its hash beforehand, from the mirror it knows. The other address is for who builds
      # without that, such as a machine; it is no part of what comes out.
      mirror = "mirror://${index.suite.archives.${p.a}}/${p.f}";
      url = "http://deb.debian.org/${index.suite.archives.${p.a}}/${replaceStrings [ "+" ] [ "%2b" ] p.f}";
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

  # What makes a derivation look like one of nixpkgs.
  dress =
    {
      drv,
      version,
      label,
      pname,
      debs,
      mainProgram,
      passthru ? { },
    }:
    let
      self =
        drv
        // {
          inherit pname version;
          meta = {
            inherit mainProgram;
            name = drv.name;
            description = "${lib.concatStringsSep ", " debs} of ${label}";
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
    in
    dress {
      inherit
        pname
        version
        debs
        mainProgram
        ;
      inherit (index.suite) label;
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
      passthru = {
        debNames = debs;
        # The folder of unpacked files: what a setuid wrapper copies, since /usr allows none.
        unpacked = raw (builtins.head debs);
      }
      // passthru;
    };

  # A package that another suite lends has that suite's C library, which must not meet this one's in /usr: a tree of its
  # own, with every library it needs, whose programs name their own loader.
  lent =
    from:
    {
      pname,
      mainProgram ? pname,
      ...
    }:
    let
      files = lib.mapAttrs (_: fetch) from.records;
      version = from.records.${builtins.head from.debs}.v;
    in
    dress {
      inherit pname version mainProgram;
      inherit (from) debs label;
      drv = derivation {
        name = sane "${pname}-${version}";
        inherit system;
        builder = build;
        args = [ "lent" ];
        __structuredAttrs = true;
        debs = map (name: files.${name}) from.debs;
        libraries = lib.attrValues (removeAttrs files from.debs);
      };
      # Nothing of it belongs into /usr.
      passthru.debNames = [ ];
    };
in
{
  inherit
    package
    lent
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
