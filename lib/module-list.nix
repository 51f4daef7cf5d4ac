# nixosModules: `default`, and every file of modules/ under its own name.
let
  folder = ../modules;
  entries = builtins.readDir folder;
  files = builtins.filter (
    name:
    entries.${name} == "regular" && builtins.match ".*\\.nix" name != null && name != "default.nix"
  ) (builtins.attrNames entries);
in
builtins.listToAttrs (
  map (file: {
    name = builtins.replaceStrings [ ".nix" ] [ "" ] file;
    value = folder + "/${file}";
  }) files
)
// {
  default = folder;
}
