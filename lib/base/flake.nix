{
  description = "The built-in base of Codchi: the interface of nixpkgs over packages of a Debian mirror";

  outputs =
    { self }:
    let
      lib = import ./lib;
      systems = builtins.filter (s: builtins.pathExists (./index + "/${s}")) [
        "x86_64-linux"
        "aarch64-linux"
      ];
    in
    {
      lib = lib // {
        nixosSystem = args: import ./eval-config.nix ({ lib = self.lib; } // args);
      };
      # By this a machine knows that it is not on nixpkgs, and what to call it instead.
      codchiBase = lib.genAttrs systems (system: {
        name = "debian";
        inherit (lib.importJSON (./index + "/${system}/suite.json")) label;
      });
      legacyPackages = lib.genAttrs systems (system: import ./. { inherit system; });
      nixosModules = { };
    };
}
