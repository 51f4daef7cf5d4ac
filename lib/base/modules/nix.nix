# Nix in the machine. Its daemon is the host's; the machine reaches it through a socket.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) free strings;
  cfg = config.nix;
  atom = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      types.package
    ]
  );
  show =
    v:
    if v == null then
      ""
    else if lib.isBool v then
      lib.boolToString v
    else if lib.isList v then
      lib.concatMapStringsSep " " toString v
    else
      toString v;

  entry =
    { name, config, ... }:
    {
      options = {
        from = mkOption {
          type = types.attrsOf types.anything;
          default = {
            type = "indirect";
            id = name;
          };
          description = "The reference that is looked up.";
        };
        to = mkOption {
          type = types.attrsOf types.anything;
          description = "What it means.";
        };
        flake = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "A flake it means.";
        };
        exact = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the reference must be this one exactly.";
        };
      };
      config.to = lib.mkIf (config.flake != null) (
        lib.mkDefault (
          {
            type = "path";
            path = config.flake.outPath;
          }
          // lib.filterAttrs (n: _: lib.elem n [
            "lastModified"
            "narHash"
            "rev"
            "revCount"
          ]) config.flake
        )
      );
    };
in
{
  options.nix = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether Nix is in the machine.";
    };
    package = mkOption {
      type = types.package;
      default = pkgs.nix;
      defaultText = "pkgs.nix";
      description = "The Nix package.";
    };
    settings = mkOption {
      default = { };
      description = "Settings of nix.conf.";
      type = types.submodule {
        freeformType = types.attrsOf (types.either atom (types.listOf atom));
      };
    };
    extraOptions = mkOption {
      type = types.lines;
      default = "";
      description = "Further lines of nix.conf.";
    };
    checkConfig = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted; nix.conf is not checked when it is built.";
    };
    checkAllErrors = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted.";
    };
    registry = mkOption {
      type = types.attrsOf (types.submodule entry);
      default = { };
      description = "The flake registry of the system.";
    };
    nixPath = strings "Entries of NIX_PATH.";
    channel.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Accepted; there are no channels.";
    };
    daemonCPUSchedPolicy = mkOption {
      type = types.str;
      default = "other";
      description = "Accepted; the daemon is the host's.";
    };
    gc = free "Accepted; the store is collected on the host.";
    optimise = free "Accepted; the store is optimised on the host.";
    buildMachines = mkOption {
      type = types.listOf types.anything;
      default = [ ];
      description = "Accepted; builders are the host's.";
    };
    distributedBuilds = mkOption {
      type = types.bool;
      default = false;
      description = "Accepted; builders are the host's.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    nix.settings = {
      experimental-features = lib.mkDefault [
        "nix-command"
        "flakes"
      ];
      trusted-users = [ "root" ];
      allowed-users = lib.mkDefault [ "*" ];
      # The base is for places from which the list on the web cannot be reached; every use of `nixpkgs#` would wait for it.
      # A file, because older versions of Nix take an empty value for an address.
      flake-registry = lib.mkDefault "/etc/nix/registry.json";
    };
    environment.etc = {
      "nix/nix.conf".text =
        lib.concatStrings (lib.mapAttrsToList (k: v: "${k} = ${show v}\n") cfg.settings) + cfg.extraOptions;
      "nix/registry.json".text = builtins.toJSON {
        version = 2;
        flakes = lib.mapAttrsToList (_: e: { inherit (e) from to exact; }) cfg.registry;
      };
    };
    environment.sessionVariables = {
      NIX_REMOTE = lib.mkDefault "daemon";
    }
    // lib.optionalAttrs (cfg.nixPath != [ ]) {
      NIX_PATH = cfg.nixPath;
    };
    users.users = lib.listToAttrs (
      map (
        n:
        lib.nameValuePair "nixbld${toString n}" {
          uid = 30000 + n;
          group = "nixbld";
          isSystemUser = true;
          description = "Nix build user ${toString n}";
        }
      ) (lib.range 1 8)
    );
  };
}
