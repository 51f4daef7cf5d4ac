# The system: activation, and the toplevel that a machine boots and switches to.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.system;
  suite = pkgs.base.suite;

  script =
    { ... }:
    {
      options = {
        deps = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Steps that come before.";
        };
        text = mkOption {
          type = types.lines;
          default = "";
          description = "Commands, run by bash at each boot and switch.";
        };
        supportsDryActivation = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it knows `NIXOS_ACTION=dry-activate` and then changes nothing.";
        };
      };
    };

  # Steps that the init program does itself, with the steps each comes after.
  builtin = {
    specialfs = [ ];
    usr = [ "specialfs" ];
    binsh = [ "usr" ];
    usrbinenv = [ "usr" ];
    var = [ "usr" ];
    users = [ "usr" ];
    groups = [ "users" ];
    etc = [
      "var"
      "users"
      "groups"
    ];
    hostname = [ "etc" ];
    wrappers = [
      "users"
      "groups"
    ];
  };
  steps =
    lib.mapAttrs (name: deps: {
      inherit deps;
      text = "";
      supportsDryActivation = true;
    }) builtin;
  scripts = cfg.activationScripts;
  all = lib.mapAttrs (
    name: s:
    s
    // {
      deps = s.deps ++ builtin.${name} or [ ];
    }
  ) (steps // scripts);
  # The init program needs /usr before anything can run, so `specialfs` and `usr` come first whatever else is asked.
  order =
    let
      visit =
        done: name:
        if lib.elem name done || !(all ? ${name}) then
          done
        else
          lib.foldl' visit done all.${name}.deps ++ [ name ];
    in
    lib.foldl' visit [ ] (
      [
        "specialfs"
        "usr"
      ]
      ++ lib.attrNames all
    );
  ordered = lib.unique order;

  activation = pkgs.writeText "activation.json" (
    builtins.toJSON {
      version = 1;
      hostName = config.networking.hostName;
      steps = map (name: {
        inherit name;
        builtin = builtin ? ${name};
        inherit (all.${name}) text;
        dry = all.${name}.supportsDryActivation;
      }) ordered;
      copies = cfg.build.etcCopies;
      users = cfg.build.userSpec;
      wrappers = cfg.build.wrappers;
    }
  );

  # Packages below this size are copied into a layer; larger ones are mounted as they are.
  layerBytes = 200000;
  # The small packages of every machine, merged once for all of them.
  shared = pkgs.base.action "base-layer" "layer" {
    inherit layerBytes;
    debs = map (name: "${pkgs.base.raw name}") (
      pkgs.base.closure (
        pkgs.base.packages.debs ++ lib.optionals config.nix.enable (config.nix.package.debNames or [ ])
      )
    );
  };
  usr = pkgs.base.action "usr" "merge" {
    inherit layerBytes;
    shared = "${shared}";
    layerCount = 120;
    exportReferencesGraph.graph = map (p: "${p}") (
      [
        cfg.path
        cfg.build.etc
        activation
        config.systemd.package
      ]
      # Named for what is not linked into a profile, such as a library or a program's plugins.
      ++ config.environment.systemPackages
      ++ lib.concatMap (u: u.packages) (lib.attrValues config.users.users)
      ++ cfg.extraDependencies
    );
  };

  toplevel = pkgs.base.action "nixos-system-${cfg.name}-${cfg.nixos.label}" "toplevel" {
    inherit usr;
    etc = "${cfg.build.etc}/etc";
    program = pkgs.base.init;
    links = {
      sw = cfg.path;
      systemd = config.systemd.package;
      "activation.json" = activation;
    }
    # What an environment of this package set is made with, so that one can be entered without the mirror.
    // lib.optionalAttrs config.nix.enable {
      shell-tools = pkgs.base.tools;
      shell-setup = pkgs.base.shellSetup;
    };
    files = {
      nixos-version = cfg.nixos.label;
      system = pkgs.system;
      init-interface-version = "systemd 1";
      kernel-params = lib.concatStringsSep " " config.boot.kernelParams;
      extra-dependencies = lib.concatLines (map toString cfg.extraDependencies);
    };
    commands = cfg.systemBuilderCommands + "\n" + cfg.extraSystemBuilderCmds;
    shell = pkgs.base.static.bash;
    path = pkgs.base.toolPath;
  };

  failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
  checked =
    if failed != [ ] then
      throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (m: "- ${m}") failed}"
    else
      lib.foldr lib.warn toplevel config.warnings;
in
{
  options.system = {
    build = mkOption {
      default = { };
      description = "What a system is built of.";
      type = types.submodule { freeformType = types.lazyAttrsOf (types.uniq types.unspecified); };
    };
    name = mkOption {
      type = types.str;
      default = if config.networking.hostName == "" then "unnamed" else config.networking.hostName;
      defaultText = "the host name";
      description = "Name of the system in the store.";
    };
    path = mkOption {
      type = types.package;
      internal = true;
      description = "What `/run/current-system/sw` is.";
    };
    stateVersion = mkOption {
      type = types.str;
      default = cfg.nixos.release;
      defaultText = "config.system.nixos.release";
      description = "The release the machine was made with; state is laid out as that release does.";
    };
    nixos = {
      release = mkOption {
        type = types.str;
        default = lib.trivial.release or "26.05";
        readOnly = true;
        description = "The NixOS release whose options this base follows.";
      };
      codeName = mkOption {
        type = types.str;
        default = suite.suite;
        readOnly = true;
        description = "Debian's name of the suite.";
      };
      distroName = mkOption {
        type = types.str;
        default = "Codchi base";
        internal = true;
        description = "What it calls itself.";
      };
      distroId = mkOption {
        type = types.str;
        default = "nixos";
        internal = true;
        description = "The id programs look for.";
      };
      version = mkOption {
        type = types.str;
        default = "${cfg.nixos.release}-${suite.suite}";
        defaultText = "release and suite";
        internal = true;
        description = "Version of the system.";
      };
      versionSuffix = mkOption {
        type = types.str;
        default = "-${suite.suite}";
        internal = true;
        description = "End of the version.";
      };
      revision = mkOption {
        type = types.nullOr types.str;
        default = null;
        internal = true;
        description = "Revision of nixpkgs; there is none.";
      };
      variant_id = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "VARIANT_ID of os-release.";
      };
      variantName = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "VARIANT of os-release.";
      };
      tags = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Words in the label.";
      };
      label = mkOption {
        type = types.strMatching "[a-zA-Z0-9:_./-]*";
        default = lib.concatStringsSep "-" (
          lib.sort lib.lessThan cfg.nixos.tags ++ [ cfg.nixos.version ]
        );
        defaultText = "tags and version";
        description = "Label of the system.";
      };
      extraOSReleaseArgs = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Further fields of os-release.";
      };
      osRelease = mkOption {
        type = types.lines;
        internal = true;
        readOnly = true;
        description = "The file os-release.";
      };
    };
    activationScripts = mkOption {
      default = { };
      type = types.attrsOf (types.coercedTo types.str (text: { inherit text; }) (types.submodule script));
      description = "Commands run at each boot and switch, ordered by their dependencies.";
    };
    userActivationScripts = mkOption {
      default = { };
      type = types.attrsOf (types.coercedTo types.str (text: { inherit text; }) (types.submodule script));
      description = "Commands run for each user, when a session starts and at a switch.";
    };
    extraDependencies = mkOption {
      type = types.listOf types.pathInStore;
      default = [ ];
      description = "Paths the system keeps, besides those it refers to.";
    };
    extraSystemBuilderCmds = mkOption {
      type = types.lines;
      default = "";
      internal = true;
      description = "Commands that add to the toplevel, with `$out`.";
    };
    systemBuilderCommands = mkOption {
      type = types.lines;
      default = "";
      internal = true;
      description = "The same, under its newer name.";
    };
    switch = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Accepted; a machine can always switch.";
      };
      enableNg = mkOption {
        type = types.bool;
        default = true;
        description = "Accepted.";
      };
    };
    etc.overlay.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Accepted; `/etc` is made of links.";
    };
    tools.nixos-option.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Accepted.";
    };
    disableInstallerTools = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted; there is no installer.";
    };
    autoUpgrade = mkOption {
      type = types.lazyAttrsOf types.anything;
      default = { };
      description = "Accepted; a machine is rebuilt from its host.";
    };
    configurationRevision = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Revision of the configuration.";
    };
  };

  config = {
    system.nixos.osRelease = lib.concatStrings (
      lib.mapAttrsToList (k: v: "${k}=${builtins.toJSON v}\n") (
        {
          ID = cfg.nixos.distroId;
          ID_LIKE = "debian";
          NAME = "NixOS";
          PRETTY_NAME = "Codchi base: NixOS options over ${suite.label}";
          VERSION = "${cfg.nixos.version} (${suite.label})";
          VERSION_ID = cfg.nixos.release;
          VERSION_CODENAME = suite.suite;
          BUILD_ID = cfg.nixos.version;
          DEBIAN_VERSION_ID = suite.release;
        }
        // lib.optionalAttrs (cfg.nixos.variant_id != null) { VARIANT_ID = cfg.nixos.variant_id; }
        // lib.optionalAttrs (cfg.nixos.variantName != null) { VARIANT = cfg.nixos.variantName; }
        // cfg.nixos.extraOSReleaseArgs
      )
    );
    system.build = {
      inherit usr activation;
      toplevel = checked;
    };

    systemd.user.services.nixos-activation = lib.mkIf (cfg.userActivationScripts != { }) {
      description = "User activation";
      unitConfig.ConditionUser = "!@system";
      wantedBy = [ "default.target" ];
      serviceConfig.Type = "oneshot";
      script = lib.concatStrings (
        map (n: cfg.userActivationScripts.${n}.text + "\n") (lib.attrNames cfg.userActivationScripts)
      );
    };
  };
}
