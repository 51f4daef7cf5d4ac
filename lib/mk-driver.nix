# The record of a driver, checked and completed.
let
  kinds = [
    "container"
    "vm"
    "image"
    "none"
  ];
  defaults = {
    # What the host must have, for `codchi doctor`.
    requires = [ ];
    # What it can do, as data: store modes, limits, capabilities.
    supports = { };
    # Names that may stand between @ in its engine settings; the host fills them in.
    variables = [ ];
    # Keys of `codchi.driver.settings.<name>` a module may set without being asked about.
    allowedSettings = [ ];
    # NixOS module with what a machine needs to run on it.
    machine = null;
    # Function from the evaluated machine to the engine's settings.
    host = null;
    # Whether machines run on it, so that codeMachine makes a configuration for it.
    runnable = true;
  };
in
/*
  mkDriver checks a driver's record and fills in what it leaves out.

  Takes `name`, `kind` ("container", "vm", "image" or "none"), `description`, and any of `requires`, `supports`,
  `variables`, `allowedSettings`, `machine`, `host`, `runnable`. Throws on a key it does not know.

  Example: mkDriver { name = "native"; kind = "container"; description = "..."; host = ./host.nix; }
*/
record:
let
  known = defaults // {
    name = null;
    kind = null;
    description = null;
  };
  unknown = builtins.filter (key: !(known ? ${key})) (builtins.attrNames record);
  label = "codchi: driver `${record.name or "?"}`";
in
if !(record ? name && record ? kind && record ? description) then
  throw "${label} needs name, kind and description"
else if !(builtins.elem record.kind kinds) then
  throw "${label} has the kind `${record.kind}`; kinds are ${builtins.concatStringsSep ", " kinds}"
else if unknown != [ ] then
  throw "${label} has no use for ${builtins.concatStringsSep ", " unknown}"
else
  defaults
  // record
  // {
    # Whether Codchi runs its machines, each with an agent in it.
    attended = builtins.elem record.kind [
      "container"
      "vm"
    ];
  }
