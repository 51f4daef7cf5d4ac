# Folders of desktop data, kinds of files and the programs that open them, portals.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) yes;
  cfg = config.xdg;
  associations =
    description:
    mkOption {
      type = types.attrsOf (
        types.coercedTo (types.either (types.listOf types.str) types.str) (
          x: lib.concatStringsSep ";" (lib.toList x)
        ) types.str
      );
      default = { };
      inherit description;
    };
  sections = lib.filterAttrs (_: v: v != { }) {
    "Added Associations" = cfg.mime.addedAssociations;
    "Removed Associations" = cfg.mime.removedAssociations;
    "Default Applications" = cfg.mime.defaultApplications;
  };
in
{
  options.xdg = {
    autostart.enable = yes true "Whether programs may start with a session.";
    icons = {
      enable = yes true "Whether icons of packages are found.";
      fallbackCursorThemes = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Cursor themes to fall back on.";
      };
    };
    menus.enable = yes true "Whether menu entries of packages are found.";
    sounds.enable = yes true "Whether sounds of packages are found.";
    mime = {
      enable = yes true "Whether kinds of files are known.";
      addedAssociations = associations "Programs that open a kind of file too.";
      defaultApplications = associations "Programs that open a kind of file by default.";
      removedAssociations = associations "Programs that do not open a kind of file.";
    };
    portal = {
      enable = yes false "Whether sandboxed programs may ask the desktop.";
      extraPortals = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages that answer for a desktop.";
      };
      configPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages that say which one answers.";
      };
      config = mkOption {
        type = types.attrsOf (
          types.attrsOf (types.coercedTo types.str (lib.splitString ";") (types.listOf types.str))
        );
        default = { };
        description = "Which one answers, by desktop.";
      };
      xdgOpenUsePortal = yes false "Whether `xdg-open` asks the desktop.";
      wlr.enable = yes false "Whether the portal of wlroots is there.";
    };
  };

  config = lib.mkMerge [
    {
      environment.etc = lib.mkIf (sections != { }) {
        "xdg/mimeapps.list".text = lib.generators.toINI { } sections;
      };
    }
    (lib.mkIf cfg.portal.enable {
      environment.systemPackages = [
        pkgs.xdg-desktop-portal
      ]
      ++ cfg.portal.extraPortals
      ++ cfg.portal.configPackages
      ++ lib.optional cfg.portal.wlr.enable pkgs.xdg-desktop-portal-wlr;
      environment.sessionVariables.NIXOS_XDG_OPEN_USE_PORTAL = lib.mkIf cfg.portal.xdgOpenUsePortal "1";
      environment.etc = lib.mapAttrs' (
        desktop: values:
        lib.nameValuePair
          "xdg/xdg-desktop-portal/${lib.optionalString (desktop != "common") "${desktop}-"}portals.conf"
          {
            text = lib.generators.toINI { } {
              preferred = lib.mapAttrs (_: lib.concatStringsSep ";") values;
            };
          }
      ) cfg.portal.config;
    })
  ];
}
