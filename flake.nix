{
  description = "Code machines: a project's whole development environment, from a repository URL, as plain NixOS";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      # The built-in base stands in for nixpkgs where machines are concerned; programs and tests need the real one.
      isNixpkgs = !(nixpkgs ? codchiBase);
      perSystem =
        make:
        lib.genAttrs (if isNixpkgs then systems else [ ]) (system: make nixpkgs.legacyPackages.${system});
    in
    {
      lib = import ./lib { inherit lib; };

      nixosModules = import ./lib/module-list.nix;

      packages = perSystem (pkgs: import ./nix/packages.nix { inherit pkgs; });

      overlays.default = final: _: {
        inherit (import ./nix/packages.nix { pkgs = final; }) codchi;
      };

      apps = perSystem (
        pkgs:
        let
          codchi = {
            type = "app";
            program = lib.getExe self.packages.${pkgs.stdenv.hostPlatform.system}.codchi;
            meta.description = "Make and use code machines";
          };
        in
        {
          inherit codchi;
          default = codchi;
        }
      );

      templates = import ./docs/templates;

      checks = perSystem (pkgs: import ./tests/nix/checks.nix { inherit self nixpkgs pkgs; });

      formatter = perSystem (pkgs: pkgs.nixfmt-tree);

      devShells = perSystem (pkgs: {
        default = import ./nix/dev-shell.nix { inherit pkgs; };
      });
    };
}
