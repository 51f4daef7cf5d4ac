# The library of the built-in base: the interface of nixpkgs' `lib` as NixOS modules use it,
# written from its documented behaviour. Pure Nix, no packages.
#
# `import ./lib` is a set and may be called with `{ }` as well.
let
  fixedPoints = import ./fixed-points.nix { lib = library; };

  make =
    lib:
    let
      area = file: import file { inherit lib; };
      areas = {
        inherit fixedPoints;
        trivial = area ./trivial.nix;
        attrsets = area ./attrsets.nix;
        lists = area ./lists.nix;
        strings = area ./strings.nix;
        stringsWithDeps = area ./strings-with-deps.nix;
        versions = area ./versions.nix;
        asserts = area ./asserts.nix;
        debug = area ./debug.nix;
        customisation = area ./customisation.nix;
        derivations = area ./derivations.nix;
        meta = area ./meta.nix;
        licenses = area ./licenses.nix;
        sources = area ./sources.nix;
        sourceTypes = area ./source-types.nix;
        filesystem = area ./filesystem.nix;
        fileset = area ./fileset.nix;
        path = area ./path.nix;
        generators = area ./generators.nix;
        gvariant = area ./gvariant.nix;
        cli = area ./cli.nix;
        kernel = area ./kernel.nix;
        network = area ./network.nix;
        fetchers = area ./fetchers.nix;
        flakes = area ./flakes.nix;
        systems = area ./systems.nix;
        platforms = area ./platforms.nix;
        options = area ./options.nix;
        types = area ./types.nix;
        modules = area ./modules.nix;
        misc = area ./misc.nix;
      };
      shared = {
        # People are data of nixpkgs. A reference to one is only an error when it is looked at.
        maintainers = { };
        teams = { };
      };
    in
    shared
    // areas
    // areas.misc
    // areas.trivial
    // fixedPoints
    // areas.attrsets
    // areas.lists
    // areas.strings
    // areas.stringsWithDeps
    // areas.customisation
    // areas.derivations
    // areas.meta
    // {
      inherit (areas.sources)
        canCleanSource
        cleanSource
        cleanSourceFilter
        cleanSourceWith
        commitIdFromGitRepo
        filterSource
        pathHasContext
        pathIsGitRepo
        repoRevToName
        revOrTag
        sourceByRegex
        sourceFilesBySuffices
        ;
      inherit (areas.filesystem)
        packagesFromDirectoryRecursive
        pathIsDirectory
        pathIsRegularFile
        pathType
        ;
      inherit (areas.asserts) assertMsg assertOneOf;
      inherit (areas.flakes) flakeRefToString parseFlakeRef;
      inherit (areas.network.ipv6) mkEUI64Suffix;
      inherit (areas.generators) mkLuaInline;
      inherit (areas.debug)
        addErrorContext
        runTests
        testAllTrue
        trace
        traceFnSeqN
        traceIf
        traceSeq
        traceSeqN
        traceVal
        traceValFn
        traceValSeq
        traceValSeqFn
        traceValSeqN
        traceValSeqNFn
        unsafeGetAttrPos
        ;
    }
    // areas.options
    // {
      inherit (areas.lists) replicate;
      inherit (areas.types)
        isType
        setType
        defaultTypeMerge
        defaultFunctor
        isOptionType
        mkOptionType
        ;
    }
    // removeAttrs areas.modules [
      "importJSON"
      "importTOML"
    ]
    // {
      inherit (areas) licenses platforms systems;
      __functor = self: _: self;
    };

  library = fixedPoints.makeExtensible make;
in
library
