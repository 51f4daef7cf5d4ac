# Files of the evaluating machine.
{ lib }:
let
  pathType = builtins.readFileType;

  listFilesRecursive =
    dir:
    lib.flatten (
      lib.mapAttrsToList (
        name: type: if type == "directory" then listFilesRecursive (dir + "/${name}") else dir + "/${name}"
      ) (builtins.readDir dir)
    );

  packagesFromDirectoryRecursive =
    {
      callPackage,
      newScope ? null,
      directory,
      ...
    }@args:
    let
      entries = builtins.readDir directory;
      # With newScope each directory is a scope: its packages see one another.
      packages =
        callPackage: newScope:
        lib.concatMapAttrs (
          name: type:
          let
            path = directory + "/${name}";
          in
          if type == "directory" then
            {
              ${name} = packagesFromDirectoryRecursive (
                args
                // {
                  inherit callPackage newScope;
                  directory = path;
                }
              );
            }
          else if type == "regular" && lib.hasSuffix ".nix" name then
            { ${lib.removeSuffix ".nix" name} = callPackage path { }; }
          else if type == "regular" then
            { }
          else
            throw "packagesFromDirectoryRecursive: `${toString path}' is neither a file nor a directory, but ${type}"
        ) entries;
    in
    if entries ? "package.nix" then
      callPackage (directory + "/package.nix") { }
    else if newScope == null then
      packages callPackage null
    else
      lib.recurseIntoAttrs (lib.makeScope newScope (self: packages self.callPackage self.newScope));
in
{
  inherit (builtins)
    readDir
    readFileType
    hashFile
    baseNameOf
    dirOf
    isPath
    ;
  inherit pathType listFilesRecursive packagesFromDirectoryRecursive;
  pathIsDirectory = path: builtins.pathExists path && pathType path == "directory";
  pathIsRegularFile = path: builtins.pathExists path && pathType path == "regular";
  resolveDefaultNix =
    x:
    if lib.isString x && lib.hasSuffix "/" x then
      x + "default.nix"
    else if lib.filesystem.pathIsDirectory x then
      x + "/default.nix"
    else
      x;
  haskellPathsInDir =
    root:
    lib.concatMapAttrs (
      name: type:
      lib.optionalAttrs (type == "directory" && builtins.pathExists (root + "/${name}/${name}.cabal")) {
        ${name} = root + "/${name}";
      }
    ) (builtins.readDir root);
  locateDominatingFile =
    pattern: start:
    let
      go =
        dir:
        let
          matches = lib.filter (m: m != null) (
            map (name: builtins.match pattern name) (lib.attrNames (builtins.readDir dir))
          );
        in
        if matches != [ ] then
          {
            path = dir;
            inherit matches;
          }
        else if dir == /. then
          null
        else
          go (dirOf dir);
    in
    go (if lib.filesystem.pathIsDirectory start then start else dirOf start);
}
