# The drivers by name, read from the folder: adding a driver touches drivers/NAME and nothing here.
let
  folder = ../drivers;
  mkDriver = import ./mk-driver.nix;
  entries = builtins.readDir folder;
  names = builtins.filter (name: entries.${name} == "directory") (builtins.attrNames entries);
  load =
    name:
    let
      driver = mkDriver (import (folder + "/${name}"));
    in
    if driver.name == name then
      driver
    else
      throw "codchi: drivers/${name} calls itself `${driver.name}`";
in
builtins.listToAttrs (
  map (name: {
    inherit name;
    value = load name;
  }) names
)
