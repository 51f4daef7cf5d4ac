# Fonts and fontconfig.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) yes;
  cfg = config.fonts;
  families =
    default: description:
    mkOption {
      type = types.listOf types.str;
      inherit default description;
    };
  prefer =
    generic: names:
    lib.optionalString (names != [ ]) ''
      <alias binding="same"><family>${generic}</family><prefer>${
        lib.concatMapStrings (n: "<family>${lib.escapeXML n}</family>") names
      }</prefer></alias>
    '';
in
{
  imports = [
    (lib.mkRenamedOptionModule [ "fonts" "fonts" ] [ "fonts" "packages" ])
    (lib.mkRenamedOptionModule [ "fonts" "enableDefaultFonts" ] [ "fonts" "enableDefaultPackages" ])
  ];

  options.fonts = {
    packages = mkOption {
      type = types.listOf types.path;
      default = [ ];
      description = "Packages of fonts.";
    };
    enableDefaultPackages = yes false "Whether a few fonts for common scripts are there.";
    enableGhostscriptFonts = yes false "Whether Ghostscript's fonts are there.";
    fontDir.enable = yes false "Whether `/run/current-system/sw/share/X11/fonts` lists all fonts.";
    fontconfig = {
      enable = yes (cfg.packages != [ ] || cfg.enableDefaultPackages) "Whether fontconfig is set up." // {
        defaultText = lib.literalExpression "whether there are fonts";
      };
      antialias = yes true "Whether edges are smoothed.";
      allowBitmaps = yes true "Whether bitmap fonts count.";
      includeUserConf = yes true "Whether users' own settings count.";
      localConf = mkOption {
        type = types.lines;
        default = "";
        description = "Content of `fonts/local.conf`.";
      };
      hinting = {
        enable = yes true "Whether glyphs are fitted to the grid.";
        autohint = yes false "Whether FreeType's own hinting is used.";
        style = mkOption {
          type = types.enum [
            "none"
            "slight"
            "medium"
            "full"
          ];
          default = "slight";
          description = "How much.";
        };
      };
      subpixel = {
        rgba = mkOption {
          type = types.enum [
            "rgb"
            "bgr"
            "vrgb"
            "vbgr"
            "none"
          ];
          default = "none";
          description = "Order of the parts of a pixel.";
        };
        lcdfilter = mkOption {
          type = types.enum [
            "none"
            "default"
            "light"
            "legacy"
          ];
          default = "default";
          description = "Filter for them.";
        };
      };
      defaultFonts = {
        monospace = families [ "DejaVu Sans Mono" ] "Fonts with one width.";
        sansSerif = families [ "DejaVu Sans" ] "Fonts without serifs.";
        serif = families [ "DejaVu Serif" ] "Fonts with serifs.";
        emoji = families [ "Noto Color Emoji" ] "Fonts of emoji.";
      };
    };
  };

  config = lib.mkMerge [
    (lib.mkIf cfg.enableDefaultPackages {
      fonts.packages = [
        pkgs.fonts-dejavu-core
        pkgs.fonts-liberation
        pkgs.fonts-noto-color-emoji
      ];
    })
    { environment.systemPackages = cfg.packages; }
    (lib.mkIf cfg.fontconfig.enable {
      environment.systemPackages = [ pkgs.fontconfig ];
      environment.etc."fonts/local.conf".text =
        if cfg.fontconfig.localConf != "" then
          cfg.fontconfig.localConf
        else
          ''
            <?xml version="1.0"?>
            <!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
            <fontconfig>
            <dir>/run/current-system/sw/share/fonts</dir>
            <match target="pattern">
            <edit mode="append" name="antialias"><bool>${lib.boolToString cfg.fontconfig.antialias}</bool></edit>
            <edit mode="append" name="hinting"><bool>${lib.boolToString cfg.fontconfig.hinting.enable}</bool></edit>
            <edit mode="append" name="autohint"><bool>${lib.boolToString cfg.fontconfig.hinting.autohint}</bool></edit>
            <edit mode="append" name="hintstyle"><const>hint${cfg.fontconfig.hinting.style}</const></edit>
            <edit mode="append" name="rgba"><const>${cfg.fontconfig.subpixel.rgba}</const></edit>
            <edit mode="append" name="lcdfilter"><const>lcd${cfg.fontconfig.subpixel.lcdfilter}</const></edit>
            </match>
            ${prefer "monospace" cfg.fontconfig.defaultFonts.monospace}${prefer "sans-serif" cfg.fontconfig.defaultFonts.sansSerif}${prefer "serif" cfg.fontconfig.defaultFonts.serif}${prefer "emoji" cfg.fontconfig.defaultFonts.emoji}${
              lib.optionalString (!cfg.fontconfig.allowBitmaps)
                "<selectfont><rejectfont><pattern><patelt name=\"scalable\"><bool>false</bool></patelt></pattern></rejectfont></selectfont>\n"
            }</fontconfig>
          '';
    })
  ];
}
