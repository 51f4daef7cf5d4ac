# Files of /etc. What Debian's packages put there comes first; a file named here replaces theirs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  enabled = lib.filter (e: e.enable) (lib.attrValues config.environment.etc);
  copied = lib.filter (e: e.mode != "symlink" && e.mode != "direct-symlink") enabled;
in
{
  options.environment.etc = mkOption {
    default = { };
    description = "Files of `/etc`, by path.";
    example = lib.literalExpression ''{ "motd".text = "welcome\n"; }'';
    type = types.attrsOf (
      types.submodule (
        {
          name,
          config,
          options,
          ...
        }:
        {
          options = {
            enable = mkOption {
              type = types.bool;
              default = true;
              description = "Whether the file is there.";
            };
            target = mkOption {
              type = types.str;
              default = name;
              description = "Path below `/etc`.";
            };
            text = mkOption {
              type = types.nullOr types.lines;
              default = null;
              description = "Content.";
            };
            source = mkOption {
              type = types.path;
              description = "The file or folder it is.";
            };
            mode = mkOption {
              type = types.str;
              default = "symlink";
              description = "`symlink`, or the octal mode of a copy.";
            };
            uid = mkOption {
              type = types.int;
              default = 0;
              description = "Owner of a copy.";
            };
            gid = mkOption {
              type = types.int;
              default = 0;
              description = "Group of a copy.";
            };
            user = mkOption {
              type = types.str;
              default = "+${toString config.uid}";
              description = "Name of the owner of a copy, or `+` and a number.";
            };
            group = mkOption {
              type = types.str;
              default = "+${toString config.gid}";
              description = "Name of the group of a copy, or `+` and a number.";
            };
          };
          config = {
            target = lib.mkDefault name;
            # A file of its own only where someone asks for its path: /etc itself is written by one derivation.
            source = lib.mkIf (config.text != null) (
              lib.mkDerivedConfig options.text (pkgs.writeText ("etc-" + baseNameOf name))
            );
          };
        }
      )
    );
  };

  config.system.build.etc = pkgs.writeTree "etc" (
    {
      # The folder is there even when nothing is in it.
      "etc/.base".text = "";
    }
    // lib.listToAttrs (
      map (
        e:
        lib.nameValuePair "etc/${e.target}" (
          if e.text != null then
            { inherit (e) text; }
          else
            { source = if lib.isPath e.source then "${e.source}" else e.source; }
        )
      ) enabled
    )
  );

  config.system.build.etcCopies = lib.listToAttrs (
    map (e: lib.nameValuePair e.target { inherit (e) mode user group; }) copied
  );
}
