# nixosModules: `default`, every file of modules/ under its own name, and `host` for a NixOS that runs machines.
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
  host = folder + "/on-host";
}
