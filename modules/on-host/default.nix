# Machines of a NixOS host that its configuration declares: their systems are built with it, so that nothing is evaluated or fetched
# when they start. Installing one is the same code that `codchi rebuild` uses.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;
  codeMachine = import ../../lib/code-machine.nix;
  drivers = builtins.filter (driver: driver.runnable) (
    builtins.attrValues (import ../../lib/drivers.nix)
  );
  inherit (pkgs.stdenv.hostPlatform) system;

  machine =
    { name, config, ... }:
    {
      options = {
        modules = lib.mkOption {
          type = lib.types.listOf lib.types.deferredModule;
          default = [ ];
          example = lib.literalExpression "[ inputs.my-project.nixosModules.default ]";
          description = "NixOS modules that the machine is made of.";
        };
        driver = lib.mkOption {
          type = lib.types.enum (map (driver: driver.name) drivers);
          default = "native";
          description = "What the machine runs on.";
        };
        stateVersion = lib.mkOption {
          type = lib.types.str;
          example = "26.05";
          description = "The release at the machine's creation. Never change it afterwards.";
        };
        nixpkgs = lib.mkOption {
          type = lib.types.raw;
          default = cfg.nixpkgs;
          defaultText = lib.literalExpression "config.codchi.nixpkgs";
          description = "The nixpkgs, as a flake, that gives this machine's packages and options.";
        };
        toplevel = lib.mkOption {
          type = lib.types.path;
          default =
            (codeMachine {
              inputs.nixpkgs = config.nixpkgs;
              inherit (config) modules stateVersion;
              inherit system;
            }).nixosConfigurations.${config.driver}.config.system.build.toplevel;
          defaultText = lib.literalMD "the system of the modules";
          description = "The machine's system. It is part of what the host's configuration needs.";
        };
        start = lib.mkOption {
          type = lib.types.bool;
          default = true;
          description = "Whether the machine starts with the host, and when it is added to a running one.";
        };
      };
    };

  # An instance for each machine: its command names the system, so a new system restarts it, which switches the running machine.
  install =
    name: machine:
    lib.nameValuePair "codchi-install@${name}" {
      description = "Code machine ${name}: its system";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      path = [ "/run/wrappers" ] ++ cfg.hostPackages;
      # The machine must not go down for a rebuild of the host.
      stopIfChanged = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = lib.escapeShellArgs (
          [
            (lib.getExe cfg.package)
            "--no-input"
            "install"
            name
            "--toplevel"
            "${machine.toplevel}"
          ]
          ++ lib.optional machine.start "--start"
        );
      };
    };
in
{
  options.codchi = {
    machines = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule machine);
      default = { };
      example = lib.literalExpression ''
        {
          dev = {
            modules = [ inputs.my-project.nixosModules.default ];
            stateVersion = "26.05";
          };
        }
      '';
      description = "Code machines of root on this host. One that is taken out here stays until `codchi delete`.";
    };
    nixpkgs = lib.mkOption {
      type = lib.types.raw;
      example = lib.literalExpression "inputs.nixpkgs";
      description = "The nixpkgs, as a flake, that gives machines their packages and options.";
    };
    package = lib.mkOption {
      type = lib.types.package;
      default = (import ../../nix/packages.nix { inherit pkgs; }).codchi;
      defaultText = lib.literalMD "Codchi, built with the host's packages";
      description = "The `codchi` that looks after the machines.";
    };
    hostPackages = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [
        pkgs.passt
        pkgs.git
        config.nix.package
      ];
      defaultText = lib.literalExpression "[ pkgs.passt pkgs.git config.nix.package ]";
      description = "Programs of the host that Codchi uses: for machines' networks, for sources, and Nix.";
    };
  };

  config = lib.mkIf (cfg.machines != { }) {
    assertions = lib.mapAttrsToList (name: _: {
      assertion = builtins.match "[a-z]([a-z0-9-]{0,61}[a-z0-9])?" name != null;
      message = "codchi.machines.${name}: a machine's name is lower-case letters, digits and dashes, beginning with a letter";
    }) cfg.machines;
    environment.systemPackages = [ cfg.package ];
    systemd.services = lib.mapAttrs' install cfg.machines;
  };
}
