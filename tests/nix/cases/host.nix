# needs: packages
# A host that declares machines: their systems are in its closure, and a unit for each calls `codchi install`.
{
  lib,
  nixpkgs,
  system,
  ...
}:
let
  host =
    machines:
    (nixpkgs.lib.nixosSystem {
      modules = [
        (import ../../../lib/module-list.nix).host
        {
          nixpkgs.hostPlatform = system;
          system.stateVersion = "26.05";
          codchi = {
            inherit nixpkgs machines;
            package = nixpkgs.legacyPackages.${system}.hello;
            hostPackages = [ ];
          };
        }
      ];
    }).config;
  stateVersion = "26.05";
  some = host {
    dev = {
      inherit stateVersion;
      modules = [ { environment.etc.declared.text = "yes"; } ];
    };
    idle = {
      inherit stateVersion;
      start = false;
    };
  };
  command = name: some.systemd.services."codchi-install@${name}".serviceConfig.ExecStart;
  toplevel = name: some.codchi.machines.${name}.toplevel;
  wrong = host { Wrong_Name = { inherit stateVersion; }; };
in
{
  commands = map (
    name: lib.replaceStrings [ "${toplevel name}" "${some.codchi.package}" ] [ "TOPLEVEL" "CODCHI" ] (command name)
  ) [ "dev" "idle" ];
  # What the command needs is built with the host.
  context = builtins.hasAttr (builtins.unsafeDiscardStringContext (toplevel "dev").drvPath) (
    builtins.getContext (command "dev")
  );
  different = toplevel "dev" != toplevel "idle";
  restarts = some.systemd.services."codchi-install@dev".stopIfChanged;
  none = builtins.filter (lib.hasPrefix "codchi-") (builtins.attrNames (host { }).systemd.services);
  names = map (a: a.message) (builtins.filter (a: !a.assertion) wrong.assertions);
}
