# Evaluates a system, with the arguments and result of nixpkgs' `lib.nixosSystem`.
{
  lib ? import ./lib,
  modules,
  system ? null,
  pkgs ? null,
  specialArgs ? { },
  extraArgs ? { },
  prefix ? [ ],
  extraModules ? [ ],
  baseModules ? import ./modules/list.nix,
  modulesLocation ? null,
  check ? true,
}:
let
  located =
    if modulesLocation == null then modules else map (lib.setDefaultModuleLocation modulesLocation) modules;

  given = {
    _file = ./eval-config.nix;
    key = ./eval-config.nix;
    config = {
      _module.args =
        {
          inherit baseModules extraModules modules;
          utils = import ./modules/utils.nix { inherit lib; };
        }
        // extraArgs;
      nixpkgs = lib.mkMerge [
        (lib.mkIf (system != null) { hostPlatform = lib.mkDefault system; })
        (lib.mkIf (pkgs != null) { inherit pkgs; })
      ];
    };
  };

  evaluated = lib.evalModules {
    inherit prefix;
    class = "nixos";
    specialArgs = {
      modulesPath = "${toString ./modules}";
    }
    // specialArgs;
    modules = baseModules ++ extraModules ++ located ++ [ given ];
  };
in
evaluated
// {
  inherit lib extraArgs;
  pkgs = evaluated._module.args.pkgs;
}
