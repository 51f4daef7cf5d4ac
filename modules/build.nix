# What the host reads of a machine: needs and manifest, and both with the derivation in one evaluation.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  hasHost = driver.kind != "none";
  inherit (pkgs.stdenv.hostPlatform) system;

  output =
    type: description:
    lib.mkOption {
      inherit type description;
      internal = true;
      readOnly = true;
    };
  data = lib.types.attrsOf lib.types.anything;
in
{
  imports = [
    ./capabilities.nix
    ./display.nix
    ./driver.nix
    ./enable.nix
    ./host-secrets.nix
    ./init-script.nix
    ./isolation.nix
    ./kvm.nix
    ./mounts.nix
    ./ports.nix
    ./resources.nix
    ./secrets.nix
    ./usb.nix
    ./user.nix
  ];

  options.codchi.build = {
    base = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = {
        name = "nixpkgs";
        label = "NixOS ${config.system.nixos.release}";
      };
      internal = true;
      description = "Where packages and the option set come from: name and label.";
    };
    nixpkgs = lib.mkOption {
      type = lib.types.nullOr (lib.types.either lib.types.path lib.types.str);
      default = null;
      internal = true;
      description = "Source of the machine's nixpkgs, for the flake registry and NIX_PATH.";
    };
    needs = output data "What evaluation alone tells of the demands on the host.";
    manifest = output data "What the built machine carries at codchi/manifest.json.";
    evaluation = output data "All the host asks of one evaluation.";
  };

  config = lib.mkMerge [
    {
      codchi.build = {
        needs = import ../lib/needs.nix { inherit lib; } cfg;
        manifest = import ../lib/manifest.nix { inherit lib; } {
          inherit config driver system;
          initScript = if cfg.initScript == null then null else "${cfg.build.initScript}";
        };
        evaluation = {
          version = 1;
          drvPath = builtins.unsafeDiscardStringContext config.system.build.toplevel.drvPath;
          inherit (cfg.build) needs base;
          driver = driver.name;
          inherit system;
          inherit (config.system) stateVersion;
          inherit (config) warnings;
        };
      };
    }
    (lib.mkIf (cfg.enable && hasHost) {
      system.systemBuilderCommands = ''
        mkdir -p $out/codchi
        cp ${pkgs.writeText "manifest.json" (builtins.toJSON cfg.build.manifest)} $out/codchi/manifest.json
      '';
    })
  ];
}
