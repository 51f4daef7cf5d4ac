# Which package set a system uses.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.nixpkgs;
  platform = types.coercedTo types.str (system: { inherit system; }) (types.lazyAttrsOf types.anything);
  set = import ../pkgs {
    inherit lib;
    inherit (cfg) config overlays;
    inherit (cfg.hostPlatform) system;
    path = ../.;
  };
in
{
  options.nixpkgs = {
    pkgs = mkOption {
      type = types.raw;
      default = set;
      defaultText = "the base's own set";
      description = "The package set; one that is given here is extended by the overlays.";
      apply = p: if options.nixpkgs.pkgs.isDefined && cfg.overlays != [ ] && !(p ? base) then p.appendOverlays cfg.overlays else p;
    };
    config = mkOption {
      type = types.lazyAttrsOf types.anything;
      default = { };
      description = "Settings of the package set. Debian's packages have no build-time settings, so these change nothing.";
    };
    overlays = mkOption {
      type = types.listOf types.raw;
      default = [ ];
      description = "Functions `final: prev: { ... }` that change the package set.";
    };
    hostPlatform = mkOption {
      type = platform;
      description = "The platform the system runs on.";
    };
    buildPlatform = mkOption {
      type = platform;
      default = cfg.hostPlatform;
      defaultText = "config.nixpkgs.hostPlatform";
      description = "The platform the system is built on.";
    };
    system = mkOption {
      type = types.str;
      default = cfg.hostPlatform.system;
      defaultText = "config.nixpkgs.hostPlatform.system";
      description = "The same as a Nix system string.";
    };
    flake = {
      source = mkOption {
        type = types.nullOr (types.either types.str types.path);
        default = null;
        description = "The flake the system was built from.";
      };
      setNixPath = mkOption {
        type = types.bool;
        default = false;
        description = "Whether `NIX_PATH` names the flake.";
      };
      setFlakeRegistry = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the flake registry names the flake.";
      };
    };
  };

  config._module.args.pkgs = lib.mkOverride 900 cfg.pkgs;
}
