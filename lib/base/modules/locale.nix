# Time zone, language, console.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.i18n;
in
{
  options = {
    time = {
      timeZone = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Time zone, such as `Europe/Berlin`; none: UTC, and a person may change it.";
      };
      hardwareClockInLocalTime = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the hardware clock keeps local time.";
      };
    };
    i18n = {
      defaultLocale = mkOption {
        type = types.str;
        default = "C.UTF-8";
        description = "The language of the system. Others than `C.UTF-8` need Debian's `locales-all`, which is large.";
      };
      extraLocaleSettings = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Single `LC_*` variables.";
      };
      supportedLocales = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Accepted; `locales-all` has them all.";
      };
      extraLocales = mkOption {
        type = types.either (types.enum [ "all" ]) (types.listOf types.str);
        default = [ ];
        description = "Further languages.";
      };
      defaultCharset = mkOption {
        type = types.str;
        default = "UTF-8";
        description = "Character set of the default locale.";
      };
    };
  };

  config = {
    environment.systemPackages = [
      pkgs.tzdata
    ]
    ++ lib.optional (
      cfg.extraLocales != [ ]
      || !(lib.elem cfg.defaultLocale [
        "C"
        "C.UTF-8"
        "POSIX"
      ])
    ) pkgs.locales-all;
    environment.sessionVariables = {
      LANG = cfg.defaultLocale;
    }
    // cfg.extraLocaleSettings;
    environment.etc = {
      "locale.conf".text = lib.concatStrings (
        lib.mapAttrsToList (n: v: "${n}=${v}\n") ({ LANG = cfg.defaultLocale; } // cfg.extraLocaleSettings)
      );
    }
    // lib.optionalAttrs (config.time.timeZone != null) {
      localtime.source = "/usr/share/zoneinfo/${config.time.timeZone}";
      timezone.text = "${config.time.timeZone}\n";
    };
  };
}
