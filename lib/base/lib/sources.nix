# Parts of a source tree.
{ lib }:
let
  # A source is a path with a filter, or a path that was filtered before.
  originOf =
    src:
    if src ? _isLibCleanSourceWith then
      src
    else
      {
        origSrc = src;
        filter = _: _: true;
        name = null;
      };

  make =
    {
      origSrc,
      filter,
      name,
    }:
    {
      _isLibCleanSourceWith = true;
      inherit origSrc filter;
      name = if name == null then "source" else name;
      outPath = builtins.path {
        inherit filter;
        path = origSrc;
        name = if name == null then "source" else name;
      };
    };

  cleanSourceWith =
    {
      filter ? _: _: true,
      src,
      name ? null,
    }:
    let
      origin = originOf src;
    in
    make {
      inherit (origin) origSrc;
      filter = path: type: filter path type && origin.filter path type;
      name = if name != null then name else src.name or null;
    };

  cleanSourceFilter =
    name: type:
    let
      base = baseNameOf (toString name);
    in
    !(
      base == ".git" && (type == "directory" || type == "regular")
      ||
        type == "directory"
        && lib.elem base [
          ".svn"
          "CVS"
          ".hg"
          ".jj"
          ".pijul"
          "_darcs"
        ]
      || lib.hasSuffix "~" base
      || builtins.match "\\.sw[a-z]" base != null
      || builtins.match "\\..*\\.sw[a-z]" base != null
      || lib.hasSuffix ".o" base
      || lib.hasSuffix ".so" base
      || type == "symlink" && lib.hasPrefix "result" base
      || type == "unknown"
    );

  relative = src: path: lib.removePrefix (toString (originOf src).origSrc + "/") (toString path);
in
{
  inherit cleanSourceWith cleanSourceFilter;
  cleanSource =
    src:
    cleanSourceWith {
      filter = cleanSourceFilter;
      inherit src;
    };
  filterSource = filter: src: builtins.filterSource filter src;
  sourceByRegex =
    src: regexes:
    cleanSourceWith {
      inherit src;
      filter = path: _: lib.any (r: builtins.match r (relative src path) != null) regexes;
    };
  sourceFilesBySuffices =
    src: suffixes:
    cleanSourceWith {
      inherit src;
      filter =
        path: type:
        type == "directory" || lib.any (s: lib.hasSuffix s (baseNameOf (toString path))) suffixes;
    };
  trace =
    src:
    let
      origin = originOf src;
    in
    make {
      inherit (origin) origSrc;
      name = src.name or null;
      filter =
        path: type:
        let
          r = origin.filter path type;
        in
        builtins.trace "${toString origin.origSrc}: ${relative src path} (${type}) = ${lib.boolToString r}" r;
    };
  canCleanSource = src: src ? _isLibCleanSourceWith || !lib.sources.pathHasContext (toString src);
  pathHasContext = builtins.hasContext;
  pathIsGitRepo = path: builtins.pathExists (path + "/.git");
  commitIdFromGitRepo =
    path:
    let
      head = lib.fileContents (path + "/HEAD");
      ref = builtins.match "ref: (.*)" head;
      file = path + "/${lib.head ref}";
    in
    if ref == null then
      head
    else if builtins.pathExists file then
      lib.fileContents file
    else
      throw "commitIdFromGitRepo: no commit is known for `${lib.head ref}' in ${toString path}";
  repoRevToName =
    _: _: _:
    "source";
  urlToName = url: lib.removeSuffix ".git" (baseNameOf url);
  shortRev = lib.substring 0 7;
  revOrTag =
    rev: tag:
    if tag != null then
      tag
    else if rev != null then
      rev
    else
      throw "either `rev' or `tag' is needed";
}
