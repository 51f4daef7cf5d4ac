# The software of a machine and the environment its sessions start with.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) lines;
  cfg = config.environment;

  variables =
    description:
    mkOption {
      default = { };
      inherit description;
      type = types.attrsOf (
        types.nullOr (
          types.either
            (types.oneOf [
              types.int
              types.float
              types.str
              types.path
            ])
            (
              types.listOf (
                types.oneOf [
                  types.int
                  types.float
                  types.str
                  types.path
                ]
              )
            )
        )
      );
      apply = lib.mapAttrs (
        _: v:
        if lib.isList v then
          lib.concatMapStringsSep ":" toString v
        else if v == null then
          null
        else
          toString v
      );
    };
  strings =
    default: description:
    mkOption {
      type = types.listOf types.str;
      inherit default description;
    };

  relative = lib.concatStrings (
    lib.mapAttrsToList (
      name: suffixes:
      "export ${name}=\"${
        lib.concatStringsSep ":" (lib.concatMap (s: map (p: "${p}${s}") cfg.profiles) suffixes)
      }\${${name}:+:\$${name}}\"\n"
    ) (removeAttrs cfg.profileRelativeSessionVariables [ "PATH" ])
  );

  all = lib.filterAttrs (_: v: v != null) (cfg.sessionVariables // cfg.variables);
  path = lib.concatStringsSep ":" (
    [ config.security.wrapperDir ]
    ++ lib.optional cfg.homeBinInPath "$HOME/bin"
    ++ lib.optional cfg.localBinInPath "$HOME/.local/bin"
    ++ map (p: "${p}/bin") cfg.profiles
    # Programs of Debian look for each other here; it comes last, so that a profile always wins.
    ++ [
      "/usr/local/bin"
      "/usr/bin"
    ]
  );
in
{
  options.environment = {
    systemPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Packages whose programs every user has.";
    };
    defaultPackages = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Packages that are there by default and may be left out.";
    };
    corePackages = mkOption {
      type = types.listOf types.package;
      default = [
        (pkgs.base.package {
          pname = "base-system";
          debs = pkgs.base.packages.debs;
        })
      ];
      defaultText = "what a Debian system needs to run";
      internal = true;
      description = "Packages without which the machine does not work.";
    };
    pathsToLink = strings [ ] "Folders of the packages that appear in `/run/current-system/sw`.";
    extraOutputsToInstall = strings [ ] "Accepted; Debian's packages have one output.";
    extraSetup = lines "Commands run when `/run/current-system/sw` is built, with `$out`.";
    variables = variables "Variables of every shell.";
    sessionVariables = variables "Variables of every session.";
    profileRelativeSessionVariables = mkOption {
      type = types.attrsOf (types.listOf types.str);
      default = { };
      description = "Variables that list a folder in each profile.";
    };
    profiles = strings [ ] "Profiles whose programs are on the search path, the first one first.";
    homeBinInPath = lib.mkEnableOption "`~/bin` on the search path";
    localBinInPath = lib.mkEnableOption "`~/.local/bin` on the search path";
    shellAliases = mkOption {
      type = types.attrsOf (types.nullOr (types.either types.str types.path));
      default = { };
      description = "Aliases of every interactive shell.";
    };
    shellInit = lines "Run by every shell.";
    loginShellInit = lines "Run by every login shell.";
    interactiveShellInit = lines "Run by every interactive shell.";
    extraInit = lines "Run when a session's environment is set.";
    binsh = mkOption {
      type = types.path;
      default = "/usr/bin/dash";
      description = "What `/bin/sh` is; Debian's, whatever is set here.";
    };
    usrbinenv = mkOption {
      type = types.nullOr types.path;
      default = "/usr/bin/env";
      description = "What `/usr/bin/env` is; Debian's, whatever is set here.";
    };
    shells = mkOption {
      type = types.listOf (types.either types.package types.path);
      default = [ ];
      description = "Login shells people may choose.";
    };
  };

  config = {
    environment = {
      systemPackages = cfg.corePackages ++ cfg.defaultPackages;
      profiles = lib.mkAfter [
        "$HOME/.nix-profile"
        "/etc/profiles/per-user/$USER"
        "/nix/var/nix/profiles/default"
        "/run/current-system/sw"
      ];
      pathsToLink = [
        "/bin"
        "/etc/xdg"
        "/lib/systemd"
        "/share/applications"
        "/share/bash-completion"
        "/share/fish"
        "/share/fonts"
        "/share/icons"
        "/share/pixmaps"
        "/share/mime"
        "/share/zsh"
      ];
      variables = {
        PAGER = lib.mkDefault "less";
        EDITOR = lib.mkDefault "nano";
        XDG_CONFIG_DIRS = [ "/etc/xdg" ];
      };
      sessionVariables = {
        SSL_CERT_FILE = lib.mkDefault "/etc/ssl/certs/ca-certificates.crt";
        NIX_SSL_CERT_FILE = lib.mkDefault "/etc/ssl/certs/ca-certificates.crt";
      };
      profileRelativeSessionVariables.XDG_DATA_DIRS = [ "/share" ];
      shells = [
        "/run/current-system/sw/bin/bash"
        "/run/current-system/sw/bin/sh"
        "/bin/bash"
        "/bin/sh"
      ];
      shellAliases = {
        ls = lib.mkDefault "ls --color=tty";
        ll = lib.mkDefault "ls -l";
        l = lib.mkDefault "ls -alh";
      };

      etc = {
        "set-environment".text = ''
          if [ -n "''${__NIXOS_SET_ENVIRONMENT_DONE-}" ]; then return; fi
          export __NIXOS_SET_ENVIRONMENT_DONE=1
          : "''${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}" "''${USER:=$(id -un)}"
          export HOME USER
          ${lib.concatStrings (lib.mapAttrsToList (n: v: "export ${n}=\"${v}\"\n") all)}
          ${relative}
          export XDG_DATA_DIRS="$XDG_DATA_DIRS:/usr/local/share:/usr/share"
          export PATH="${path}"
          ${cfg.extraInit}
        '';
        "shells".text = lib.concatLines (lib.unique (map (s: if lib.isDerivation s then "/run/current-system/sw${s.shellPath or "/bin/${s.pname}"}" else toString s) cfg.shells));
        "os-release".text = config.system.nixos.osRelease;
        "lsb-release".text = ''
          DISTRIB_ID=nixos
          DISTRIB_RELEASE="${config.system.nixos.release}"
          DISTRIB_DESCRIPTION="${config.system.nixos.label}"
        '';
        "debian_version".text = "${pkgs.base.suite.release}\n";
        "nsswitch.conf".text = ''
          passwd: files systemd
          group: files [SUCCESS=merge] systemd
          shadow: files
          hosts: mymachines files myhostname dns
          networks: files
          services: files
          protocols: files
          ethers: files
          rpc: files
        '';
        # Read by pam_env, so that sessions which no shell starts have them too. Nothing is expanded there.
        "pam/environment".text = lib.concatStrings (
          lib.mapAttrsToList (n: v: "${n} DEFAULT=\"${v}\"\n") (lib.filterAttrs (_: v: v != null && !lib.hasInfix "$" v) cfg.sessionVariables)
        );
      };
    };

    system.path = pkgs.buildEnv {
      name = "system-path";
      paths = cfg.systemPackages;
      inherit (cfg) pathsToLink;
      postBuild = cfg.extraSetup;
    };
  };
}
