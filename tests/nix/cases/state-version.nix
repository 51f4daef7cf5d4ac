# The machine's own release wins over a module's; mkForce wins over both.
{ lib, machine, ... }:
let
  stateVersion = modules: (machine modules).config.system.stateVersion;
in
[
  (stateVersion [ { system.stateVersion = "24.05"; } ])
  (stateVersion [ { system.stateVersion = lib.mkForce "25.11"; } ])
]
