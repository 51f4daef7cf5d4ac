# What toolchains need beyond their package: environment, configuration of all users.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs;
in
{
  options.programs = {
    java = {
      enable = mkEnableOption "java";
      package = lib.mkPackageOption pkgs "jdk" { };
      binfmt = mkEnableOption "running java programs directly; the host decides about that";
    };
    npm = {
      enable = mkEnableOption "{command}`npm`, the Node.js package manager";
      package = lib.mkPackageOption pkgs "npm" { };
      npmrc = mkOption {
        type = types.lines;
        default = ''
          prefix = ''${HOME}/.npm
        '';
        description = "The npmrc of all users.";
      };
    };
    ccache = {
      enable = mkEnableOption "CCache, a compiler cache";
      cacheDir = mkOption {
        type = types.path;
        default = "/var/cache/ccache";
        description = "Folder of the cache.";
      };
      packageNames = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Packages of nixpkgs built with it; nothing is built here.";
      };
    };
    nix-ld = {
      enable = mkEnableOption "programs that were not built for NixOS. On this base every such program runs";
      package = mkOption {
        type = types.nullOr types.package;
        default = null;
        description = "Accepted; the dynamic linker is Debian's.";
      };
      libraries = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Libraries such programs find.";
      };
    };
    command-not-found = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Accepted; nothing tells which package an unknown command is in.";
      };
      dbPath = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "Accepted.";
      };
    };
    nix-index.enable = mkEnableOption "nix-index, which this base does not have";
    appimage = {
      enable = mkEnableOption "AppImages. They run without, where FUSE is there";
      binfmt = mkEnableOption "running AppImages directly; the host decides about that";
    };
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.java.enable {
      environment.systemPackages = [ cfg.java.package ];
      # Where java really is, at the time a shell starts.
      environment.shellInit = ''
        if [ -z "''${JAVA_HOME-}" ] && command -v javac >/dev/null 2>&1; then
          JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
          export JAVA_HOME
        elif [ -z "''${JAVA_HOME-}" ] && command -v java >/dev/null 2>&1; then
          JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")
          export JAVA_HOME
        fi
      '';
    })
    (lib.mkIf cfg.npm.enable {
      environment.systemPackages = [ cfg.npm.package ];
      environment.etc.npmrc.text = cfg.npm.npmrc;
      environment.variables.NPM_CONFIG_GLOBALCONFIG = "/etc/npmrc";
    })
    (lib.mkIf cfg.ccache.enable {
      environment.systemPackages = [ pkgs.ccache ];
      systemd.tmpfiles.rules = [ "d ${toString cfg.ccache.cacheDir} 0770 root nixbld -" ];
    })
    (lib.mkIf cfg.nix-ld.enable {
      environment.systemPackages = cfg.nix-ld.libraries;
    })
    {
      warnings =
        lib.optional cfg.nix-index.enable "the debian base has no nix-index; `programs.nix-index.enable' changes nothing"
        ++ lib.optional cfg.command-not-found.enable "the debian base has no database of commands; `programs.command-not-found.enable' changes nothing";
    }
  ];
}
