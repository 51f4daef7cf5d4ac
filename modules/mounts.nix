{ config, lib, ... }:
let
  cfg = config.codchi;
  isAbsolute = path: lib.hasPrefix "/" path && !(lib.hasInfix "/../" "${path}/");
  badTargets = lib.filter (path: !(isAbsolute path)) (lib.attrNames cfg.mounts);
  # Places that hold what a machine runs on; below them, or where one would be hidden, is no host folder.
  taken = [
    "/boot"
    "/dev"
    "/etc/static"
    "/nix"
    "/proc"
    "/run/codchi"
    "/run/systemd"
    "/sys"
  ];
  covers = above: below: lib.hasPrefix "${lib.removeSuffix "/" above}/" "${below}/";
  systemTargets = lib.filter (path: lib.any (place: covers place path || covers path place) taken) (
    lib.attrNames cfg.mounts
  );
in
{
  imports = [ ./enable.nix ];

  options.codchi.mounts = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule {
        options = {
          source = lib.mkOption {
            type = lib.types.strMatching "(/|~$|~/).*";
            example = "~/datasets";
            description = "Folder or file on the host; `~` is the home of the host's user.";
          };
          readOnly = lib.mkOption {
            type = lib.types.bool;
            default = false;
            example = true;
            description = "Whether the machine may only read it.";
          };
          optional = lib.mkOption {
            type = lib.types.bool;
            default = false;
            example = true;
            description = "Whether the machine does without it where the host lacks it.";
          };
        };
      }
    );
    default = { };
    example = {
      "/data" = {
        source = "~/datasets";
        readOnly = true;
      };
    };
    description = ''
      Host folders in the machine, by their absolute path inside. The owner of a folder is the machine's user there, both
      ways. The person is asked before the first start, and can choose another folder with `codchi mount add`.
    '';
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = badTargets == [ ];
        message = "codchi.mounts: ${lib.concatStringsSep ", " badTargets}: give absolute paths inside the machine, without `..`";
      }
      {
        assertion = systemTargets == [ ];
        message = "codchi.mounts: ${lib.concatStringsSep ", " systemTargets}: these belong to the machine's system; choose other paths";
      }
    ];
  };
}
