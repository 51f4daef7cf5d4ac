# Paths: absolute ones as path values, relative ones as strings that start with `./`.
{ lib }:
let
  # Why a string is no relative path, or null.
  badSubpath =
    s:
    if !builtins.isString s then
      "it is not a string, but a ${builtins.typeOf s}"
    else if s == "" then
      "it is empty"
    else if lib.hasPrefix "/" s then
      "it starts with `/', so it is absolute"
    else if builtins.elem ".." (lib.splitString "/" s) then
      "it has a `..' component, and what that means depends on symlinks"
    else
      null;

  componentsOf = s: lib.filter (c: c != "" && c != ".") (lib.splitString "/" s);
  joinComponents = parts: "./" + (if parts == [ ] then "." else lib.concatStringsSep "/" parts);

  checked =
    what: s: f:
    let
      why = badSubpath s;
    in
    if why == null then f else throw "${what}: `${toString s}' is not a relative path: ${why}";

  split =
    path:
    let
      go =
        parts: dir:
        if dir == dirOf dir then
          {
            root = dir;
            inherit parts;
          }
        else
          go ([ (baseNameOf dir) ] ++ parts) (dirOf dir);
    in
    go [ ] path;

  mustBePath =
    what: x: f:
    if builtins.isPath x then f else throw "${what}: takes a path value, not a ${builtins.typeOf x}";

  subpath = {
    isValid = s: badSubpath s == null;
    normalise = s: checked "lib.path.subpath.normalise" s (joinComponents (componentsOf s));
    components = s: checked "lib.path.subpath.components" s (componentsOf s);
    join =
      parts: joinComponents (lib.concatMap (s: checked "lib.path.subpath.join" s (componentsOf s)) parts);
  };
in
{
  inherit subpath;
  append =
    path: s: mustBePath "lib.path.append" path (checked "lib.path.append" s (path + ("/" + s)));
  hasPrefix =
    prefix:
    let
      p = split prefix;
    in
    mustBePath "lib.path.hasPrefix" prefix (
      path:
      mustBePath "lib.path.hasPrefix" path (
        let
          s = split path;
        in
        s.root == p.root && lib.lists.hasPrefix p.parts s.parts
      )
    );
  removePrefix =
    prefix: path:
    let
      p = split prefix;
      s = split path;
    in
    mustBePath "lib.path.removePrefix" prefix (
      mustBePath "lib.path.removePrefix" path (
        if s.root == p.root && lib.lists.hasPrefix p.parts s.parts then
          joinComponents (lib.drop (lib.length p.parts) s.parts)
        else
          throw "lib.path.removePrefix: `${toString prefix}' is no prefix of `${toString path}'"
      )
    );
  splitRoot =
    path:
    mustBePath "lib.path.splitRoot" path (
      let
        s = split path;
      in
      {
        inherit (s) root;
        subpath = joinComponents s.parts;
      }
    );
  hasStorePathPrefix =
    path:
    mustBePath "lib.path.hasStorePathPrefix" path (
      builtins.match "${lib.escapeRegex builtins.storeDir}/[0-9a-z]{32}-[^/]+.*" (toString path) != null
    );
}
