# Sets of files below one directory: the part of the interface that modules and packages use most.
#
# A set is kept as a list of absolute path strings of files; directories only count by their files.
{ lib }:
let
  make = files: {
    _type = "fileset";
    inherit files;
    # Guards against use as a path.
    outPath = throw "lib.fileset: a file set is no path; use lib.fileset.toSource to get one";
  };

  filesOf =
    path:
    if lib.filesystem.pathIsDirectory path then
      lib.concatLists (
        lib.mapAttrsToList (
          name: type:
          let
            here = path + "/${name}";
          in
          if type == "directory" then filesOf here else [ here ]
        ) (builtins.readDir path)
      )
    else
      [ path ];

  coerce =
    what: x:
    if x._type or null == "fileset" then
      x
    else if x ? _isLibCleanSourceWith then
      throw "${what}: a filtered source is no file set; use `lib.fileset.fromSource`"
    else if !builtins.isPath x then
      throw "${what}: takes a file set or a path, not a ${builtins.typeOf x}"
    else if !builtins.pathExists x then
      throw "${what}: `${toString x}' is a path that does not exist; `lib.fileset.maybeMissing' allows for that"
    else
      make (filesOf x);

  asSet = files: lib.genAttrs (map toString files) (_: true);

  keepWhere = f: a: make (lib.filter f a.files);
in
{
  isFileset = x: x._type or null == "fileset" || builtins.isPath x && builtins.pathExists x;
  empty = make [ ];
  maybeMissing =
    path: if builtins.pathExists path then coerce "lib.fileset.maybeMissing" path else make [ ];
  union =
    a: b:
    lib.fileset.unions [
      a
      b
    ];
  unions =
    list:
    let
      all = lib.concatMap (x: (coerce "lib.fileset.unions" x).files) list;
    in
    make (lib.attrValues (lib.listToAttrs (map (f: lib.nameValuePair (toString f) f) all)));
  intersection =
    a: b:
    let
      keep = asSet (coerce "lib.fileset.intersection" b).files;
    in
    keepWhere (f: keep ? ${toString f}) (coerce "lib.fileset.intersection" a);
  difference =
    a: b:
    let
      drop = asSet (coerce "lib.fileset.difference" b).files;
    in
    keepWhere (f: !(drop ? ${toString f})) (coerce "lib.fileset.difference" a);
  fileFilter =
    predicate: path:
    keepWhere (
      f:
      predicate {
        name = baseNameOf (toString f);
        type = lib.pathType f;
        hasExt = ext: lib.hasSuffix ".${ext}" (baseNameOf (toString f));
      }
    ) (coerce "lib.fileset.fileFilter" path);
  toList = x: (coerce "lib.fileset.toList" x).files;
  toSource =
    { root, fileset }:
    let
      files = (coerce "lib.fileset.toSource" fileset).files;
      base = toString root;
      outside = lib.filter (f: !lib.hasPrefix "${base}/" (toString f)) files;
      wanted = asSet files;
      # Every directory on the way to a wanted file.
      parents = lib.genAttrs (lib.concatMap (
        f:
        let
          go = dir: if dir == base || dir == "/" then [ ] else [ dir ] ++ go (dirOf dir);
        in
        go (dirOf (toString f))
      ) files) (_: true);
    in
    if outside != [ ] then
      throw "lib.fileset.toSource: `${toString (lib.head outside)}' is not below the root `${base}'"
    else
      lib.cleanSourceWith {
        src = root;
        filter = path: type: if type == "directory" then parents ? ${path} else wanted ? ${path};
      };
  fromSource =
    source:
    if source ? _isLibCleanSourceWith then
      let
        go =
          dir:
          lib.concatLists (
            lib.mapAttrsToList (
              name: type:
              let
                here = dir + "/${name}";
              in
              if !source.filter (toString here) type then
                [ ]
              else if type == "directory" then
                go here
              else
                [ here ]
            ) (builtins.readDir dir)
          );
      in
      make (go source.origSrc)
    else
      coerce "lib.fileset.fromSource" source;
  trace =
    x:
    builtins.trace "fileset: ${
      lib.concatMapStringsSep " " toString (coerce "lib.fileset.trace" x).files
    }";
  traceVal = x: lib.fileset.trace x x;
  gitTracked = path: lib.fileset.gitTrackedWith { } path;
  gitTrackedWith =
    {
      recurseSubmodules ? false,
    }:
    path:
    let
      fetched = builtins.fetchGit {
        url = path;
        submodules = recurseSubmodules;
      };
      base = toString fetched.outPath;
    in
    if lib.isStorePath path || lib.hasPrefix "${builtins.storeDir}/" (toString path) then
      coerce "lib.fileset.gitTracked" path
    else
      make (map (f: path + "/${lib.removePrefix "${base}/" (toString f)}") (filesOf fetched.outPath));
}
