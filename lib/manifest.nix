# The manifest a built machine carries.
{ lib }:
let
  renderNeeds = import ./needs.nix { inherit lib; };
  engine = import ./engine.nix { inherit lib; };
in
/*
  renderManifest gives all that a host must know of a built machine, with no value that belongs to one host.

  Takes the evaluated `config`, the driver's record, the Nix `system` and the store path of the init script (or
  null). The driver's host.nix renders the engine settings.
*/
{
  config,
  driver,
  system,
  initScript,
}:
let
  cfg = config.codchi;
in
{
  version = 1;
  codchi = import ./version.nix;
  driver = driver.name;
  inherit system initScript;
  base = {
    inherit (cfg.build.base) name label;
  };
  inherit (config.system) stateVersion;
  user = {
    inherit (cfg.user) name uid;
    inherit (config.users.groups.${config.users.users.${cfg.user.name}.group}) gid;
    home = config.users.users.${cfg.user.name}.home;
  };
  needs = renderNeeds cfg;
  isolation = {
    inherit (cfg.isolation) store;
  };
  resources = {
    inherit (cfg.resources)
      memory
      cpus
      disk
      tasks
      ;
  };
  engine =
    if driver.host == null then
      { }
    else
      engine.withSettings driver (cfg.driver.settings.${driver.name} or { }) (
        import driver.host { inherit config driver lib; }
      );
}
