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
      lib.isString value && !(builtins.hasContext value) && !(lib.hasInfix builtins.storeDir value);
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
          description = ''
            Services that get it by LoadCredential, under its name: they read `$CREDENTIALS_DIRECTORY/NAME`, and are
            restarted when its value changes. One that is not required and has no value is an empty credential.
          '';
        };
        userServices = lib.mkOption {
          type = lib.types.listOf lib.types.str;
          default = [ ];
          example = [ "editor-server" ];
          description = "Services of the user's own manager that get it so.";
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
  fileName = "[A-Za-z0-9_-][A-Za-z0-9_.-]*";
  badNames = named fileName "file" ++ named fileName "credential";
  isAbsolute = path: lib.hasPrefix "/" path && !(lib.hasInfix "/../" "${path}/");
  badPaths = lib.filter (
    name:
    let
      secret = cfg.secrets.${name};
    in
    secret.kind == "file" && !(secret.path != null && isAbsolute secret.path)
  ) (lib.attrNames cfg.secrets);

  # What of the host's own comes the same way; the host knows these names (rust/crates/codchi/src/hostsecrets.rs).
  fromHost =
    let
      file = name: owner: mode: path: {
        kind = "file";
        inherit path owner mode;
        services = [ ];
        userServices = [ ];
      };
      public = name: file name "root" "0444" "/run/codchi/secrets/${name}";
      variable = file null "root" "0400" null // {
        kind = "env";
      };
    in
    lib.optionalAttrs cfg.hostSecrets.certificates.enable {
      codchi-certificates = public "codchi-certificates";
      codchi-cacerts = public "codchi-cacerts";
      http_proxy = variable;
      https_proxy = variable;
      all_proxy = variable;
      no_proxy = variable;
    }
    // lib.optionalAttrs cfg.hostSecrets.netrc.enable {
      codchi-netrc =
        file "codchi-netrc" cfg.user.name "0600"
          "${config.users.users.${cfg.user.name}.home}/.netrc";
    };

  # What the agent in the machine is told; no value is in it.
  declared = builtins.toJSON {
    user = cfg.user.name;
    secrets = fromHost // lib.mapAttrs (_: secret: {
      inherit (secret)
        kind
        path
        owner
        mode
        services
        userServices
        ;
    }) cfg.secrets;
  };

  # Units with the credentials they load out of a folder: { UNIT.serviceConfig.LoadCredential = [ ... ]; }.
  credentials =
    uses: folder:
    lib.mkMerge (
      lib.concatLists (
        lib.mapAttrsToList (
          name: secret:
          map (unit: {
            ${lib.removeSuffix ".service" unit}.serviceConfig = {
              LoadCredential = [ "${name}:${folder}/${name}" ];
            }
            # systemd refuses to start a service whose credential is missing and has no default.
            // lib.optionalAttrs (!secret.required) { SetCredential = [ "${name}:\\n" ]; };
          }) (uses secret)
        ) cfg.secrets
      )
    );
in
{
  imports = [
    ./driver.nix
    ./enable.nix
    ./host-secrets.nix
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

  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      assertions = [
        {
          assertion = badVariables == [ ];
          message = "codchi.secrets: ${quoted badVariables} cannot name an environment variable; use letters, digits and `_`";
        }
        {
          assertion = badNames == [ ];
          message = "codchi.secrets: ${quoted badNames} cannot name a file; use letters, digits, `_`, `.` and `-`";
        }
        {
          assertion = badPaths == [ ];
          message = "codchi.secrets: ${quoted badPaths} need an absolute path, without `..`";
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
    })
    (lib.mkIf (cfg.enable && driver.attended && (cfg.secrets != { } || fromHost != { })) {
      environment.etc."codchi/secrets.json".text = declared;
      # For log-ins by other ways than the host's, which lays the variables over the environment itself.
      environment.extraInit = ''
        if [ -z "''${__CODCHI_WITHOUT_SECRETS-}" ] && [ -r /run/codchi/environment ]; then
          . /run/codchi/environment
        fi
      '';

      systemd.services = lib.mkMerge [
        (credentials (secret: secret.services) "/run/codchi/credentials")
        {
          codchi-secrets = {
            description = "Secrets of this machine";
            documentation = [ "https://github.com/codchi/codchi" ];
            wantedBy = [ "sysinit.target" ];
            before = [ "sysinit.target" ];
            after = [ "local-fs.target" ];
            restartTriggers = [ config.environment.etc."codchi/secrets.json".source ];
            unitConfig.DefaultDependencies = false;
            serviceConfig = {
              Type = "oneshot";
              RemainAfterExit = true;
              ExecStart = "/run/codchi/bin/codchi-agent --secrets";
            };
          };
        }
      ];
      systemd.user.services = credentials (secret: secret.userServices) "/run/codchi/user-credentials";
    })
  ];
}
