# What evaluation alone tells of a machine's demands on its host.
{ lib }:
/*
  renderNeeds turns the `codchi` part of an evaluated configuration into plain data for the host.

  Takes `config.codchi`; gives secrets, capabilities, host secrets, mounts, ports and those driver settings that a
  person has to grant. Nothing in it refers to the store.
*/
cfg:
let
  sorted = names: lib.sort (a: b: a < b) (lib.unique names);
  required = sorted cfg.requiredCapabilities;
in
{
  secrets = lib.mapAttrs (_: secret: {
    inherit (secret)
      description
      kind
      path
      owner
      mode
      required
      default
      check
      services
      userServices
      ;
  }) cfg.secrets;
  requiredCapabilities = required;
  optionalCapabilities = lib.filter (name: !(lib.elem name required)) (
    sorted cfg.optionalCapabilities
  );
  displays = lib.filter (protocol: cfg.display.${protocol}.enable) [
    "wayland"
    "x11"
  ];
  usbDevices = sorted cfg.usb.devices;
  hostSecrets = lib.mapAttrs (_: secret: secret.enable) cfg.hostSecrets;
  mounts = lib.mapAttrs (_: mount: {
    inherit (mount) source readOnly optional;
  }) cfg.mounts;
  ports = lib.mapAttrs (_: port: {
    inherit (port) host protocol;
  }) cfg.ports;
  driverSettings = builtins.removeAttrs (cfg.driver.settings.${cfg.driver.name} or { }
  ) (import ./drivers.nix).${cfg.driver.name}.allowedSettings;
}
