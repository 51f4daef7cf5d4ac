# Values each person supplies. This module declares them; they never enter the store.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};

  # A path literal, a store path or a string that refers to one would publish the value to every reader of the store.
  outsideStore = lib.mkOptionType {
    name = "outsideStore";
    description = "string that does not refer to the Nix store";
    descriptionClass = "noun";
    check =
      value:
      lib.isString value && !(builtins.hasContext value) && !(lib.hasPrefix builtins.storeDir value);
    inherit (lib.types.str) merge;
  };

  secret =
    { name, config, ... }:
    {
      options = {
        description = lib.mkOption {
          type = lib.types.str;
          default = name;
          defaultText = lib.literalMD "the secret's name";
          example = "Token for the package registry, from your profile page";
          description = "What it is and where a person gets it; shown when it is asked for.";
        };
        kind = lib.mkOption {
          type = lib.types.enum [
            "env"
            "file"
            "credential"
          ];
          default = "env";
          example = "file";
          description = ''
            How it is delivered: as an environment variable of log-ins and commands, as a file, or as a systemd
            credential of `services`.
          '';
        };
        path = lib.mkOption {
          type = lib.types.nullOr outsideStore;
          default = if config.kind == "file" then "/run/codchi/secrets/${name}" else null;
          defaultText = lib.literalMD "`/run/codchi/secrets/NAME` for a file, else null";
          example = "/home/codchi/.npmrc";
          description = "Where a secret of kind `file` appears.";
        };
        owner = lib.mkOption {
          type = lib.types.str;
          default = cfg.user.name;
          defaultText = lib.literalExpression "config.codchi.user.name";
          example = "root";
          description = "Owner of a secret of kind `file`.";
        };
        mode = lib.mkOption {
          type = lib.types.strMatching "0?[0-7]{3}";
          default = "0400";
          example = "0440";
          description = "Octal mode of a secret of kind `file`.";
        };
        required = lib.mkOption {
          type = lib.types.bool;
          default = true;
          example = false;
          description = "Whether the machine is refused without it.";
        };
        default = lib.mkOption {
          type = lib.types.nullOr outsideStore;
          default = null;
          example = "https://registry.example.org";
          description = "Value when none is given. It is public: everyone who reads the module sees it.";
        };
        check = lib.mkOption {
          type = lib.types.nullOr lib.types.str;
          default = null;
          example = "ghp_[A-Za-z0-9]{36}";
          description = "Regular expression the whole value must match.";
        };
        services = lib.mkOption {
          type = lib.types.listOf lib.types.str;
          default = [ ];
          example = [ "myapp" ];
          description = "Units that get it by LoadCredential, under its name.";
        };
      };
    };

  named =
    pattern: kind:
    lib.filter (name: cfg.secrets.${name}.kind == kind && builtins.match pattern name == null) (
      lib.attrNames cfg.secrets
    );
  quoted = names: lib.concatMapStringsSep ", " (name: "`${name}`") names;
  badVariables = named "[A-Za-z_][A-Za-z0-9_]*" "env";
  badNames = named "[A-Za-z0-9_.-]+" "file" ++ named "[A-Za-z0-9_.-]+" "credential";
in
{
  imports = [
    ./driver.nix
    ./enable.nix
    ./user.nix
  ];

  options.codchi.secrets = lib.mkOption {
    type = lib.types.attrsOf (lib.types.submodule secret);
    default = { };
    example = {
      NPM_TOKEN.description = "Token for the package registry";
    };
    description = "Values each person supplies, by name. They never enter the Nix store.";
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = badVariables == [ ];
        message = "codchi.secrets: ${quoted badVariables} cannot name an environment variable; use letters, digits and `_`";
      }
      {
        assertion = badNames == [ ];
        message = "codchi.secrets: ${quoted badNames} cannot name a file; use letters, digits, `_`, `.` and `-`";
      }
    ];

    # Without a host the person keeps the values in a file of their own.
    environment.extraInit = lib.mkIf (driver.kind == "none") ''
      if [ -r /etc/codchi-env ]; then
        set -a
        . /etc/codchi-env
        set +a
      fi
    '';
  };
}
