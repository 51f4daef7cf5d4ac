# Desktop programs whose settings are the machine's: browsers by their policies, dconf by its profiles.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.programs;
  json = pkgs.formats.json { };
  policies = {
    type = json.type;
    default = { };
  };
  profileFile =
    name: value:
    if lib.isPath value || lib.isDerivation value || lib.isString value then
      { source = value; }
    else
      {
        text =
          lib.optionalString value.enableUserDb "user-db:user\n"
          + lib.concatMapStrings (
            db:
            "file-db:${if lib.isPath db || lib.isDerivation db || lib.isString db then db else dconfDb db}\n"
          ) value.databases;
      };
  dconfDb =
    db:
    pkgs.runCommand "dconf-db" { } ''
      mkdir -p keys.d/locks
      cat ${pkgs.writeText "keys" (lib.generators.toDconfINI db.settings)} > keys.d/00-keys
      cat ${
        pkgs.writeText "locks" (
          lib.concatLines (
            if db.lockAll then
              lib.concatLists (
                lib.mapAttrsToList (dir: keys: map (k: "/${dir}/${k}") (lib.attrNames keys)) db.settings
              )
            else
              db.locks
          )
        )
      } > keys.d/locks/00-locks
      ${pkgs.dconf-cli}/bin/dconf compile "$out" keys.d
    '';
in
{
  options.programs = {
    dconf = {
      enable = mkEnableOption "dconf";
      packages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages with profiles and databases.";
      };
      profiles = mkOption {
        default = { };
        description = "Profiles: files, or the databases they are made of.";
        type = types.attrsOf (
          types.oneOf [
            types.path
            types.package
            (types.submodule {
              options = {
                enableUserDb = mkOption {
                  type = types.bool;
                  default = true;
                  description = "Whether the user's own database comes first.";
                };
                databases = mkOption {
                  default = [ ];
                  description = "Databases, the first one first.";
                  type = types.listOf (
                    types.oneOf [
                      types.path
                      types.package
                      (types.submodule {
                        options = {
                          keyfiles = mkOption {
                            type = types.listOf (
                              types.oneOf [
                                types.path
                                types.package
                              ]
                            );
                            default = [ ];
                            description = "Files of keys.";
                          };
                          settings = mkOption {
                            type = types.attrs;
                            default = { };
                            description = "Keys by folder.";
                          };
                          locks = mkOption {
                            type = types.listOf types.str;
                            default = [ ];
                            description = "Keys users may not change.";
                          };
                          lockAll = mkOption {
                            type = types.bool;
                            default = false;
                            description = "Whether all of them are locked.";
                          };
                        };
                      })
                    ]
                  );
                };
              };
            })
          ]
        );
      };
    };
    firefox = {
      enable = mkEnableOption "the Firefox web browser";
      package = mkOption {
        type = types.package;
        default = pkgs.firefox;
        defaultText = lib.literalExpression "pkgs.firefox";
        description = "The package; Debian's is Firefox ESR.";
      };
      policies = mkOption (
        policies // { description = "Group policies; see https://mozilla.github.io/policy-templates/."; }
      );
      preferences = mkOption {
        type = types.attrsOf (
          types.oneOf [
            types.bool
            types.int
            types.str
          ]
        );
        default = { };
        description = "Preferences of `about:config`.";
      };
      preferencesStatus = mkOption {
        type = types.enum [
          "default"
          "locked"
          "user"
          "clear"
        ];
        default = "locked";
        description = "How far users may change `preferences`.";
      };
    };
    chromium = {
      enable = mkEnableOption "{command}`chromium` policies";
      extensions = mkOption {
        type = types.nullOr (types.listOf types.str);
        default = null;
        description = "Extensions to install, by their ids.";
      };
      homepageLocation = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Home page.";
      };
      extraOpts = mkOption {
        type = types.attrs;
        default = { };
        description = "Further policies.";
      };
    };
  };

  config = lib.mkMerge [
    (lib.mkIf (cfg.dconf.enable || cfg.dconf.profiles != { }) {
      environment.systemPackages = [ pkgs.dconf-cli ] ++ cfg.dconf.packages;
      services.dbus.packages = [ pkgs.dconf-service ];
      environment.etc = lib.mapAttrs' (
        name: value: lib.nameValuePair "dconf/profile/${name}" (profileFile name value)
      ) cfg.dconf.profiles;
    })
    (lib.mkIf cfg.firefox.enable {
      environment.systemPackages = [ cfg.firefox.package ];
      programs.firefox.policies.Preferences = lib.mkIf (cfg.firefox.preferences != { }) (
        lib.mapAttrs (_: value: {
          Value = value;
          Status = cfg.firefox.preferencesStatus;
        }) cfg.firefox.preferences
      );
      environment.etc = lib.mkIf (cfg.firefox.policies != { }) {
        "firefox/policies/policies.json".source = json.generate "firefox-policies.json" {
          inherit (cfg.firefox) policies;
        };
      };
    })
    (lib.mkIf cfg.chromium.enable {
      environment.etc."chromium/policies/managed/extra.json".source = json.generate "chromium.json" (
        lib.optionalAttrs (cfg.chromium.extensions != null) {
          ExtensionInstallForcelist = cfg.chromium.extensions;
        }
        // lib.optionalAttrs (cfg.chromium.homepageLocation != null) {
          HomepageLocation = cfg.chromium.homepageLocation;
        }
        // cfg.chromium.extraOpts
      );
    })
  ];
}
