# The flake templates: one per folder, described by the folder's own flake.
let
  entries = builtins.readDir ./.;
  names = builtins.filter (name: entries.${name} == "directory") (builtins.attrNames entries);
  template = name: {
    path = ./. + "/${name}";
    inherit (import (./. + "/${name}/flake.nix")) description;
  };
in
builtins.listToAttrs (
  map (name: {
    inherit name;
    value = template name;
  }) names
)
// {
  default = template "hello";
}
