{ lib, ... }:
let
  programs =
    description: example:
    lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      inherit description example;
    };
in
{
  options.codchi.desktop = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = "Whether the machine's programs appear in the host's menu.";
    };
    entries = lib.mkOption {
      type = lib.types.nullOr (lib.types.listOf lib.types.str);
      default = null;
      example = [ "codium" ];
      description = ''
        Desktop entries to show, by file name without `.desktop`. With null all entries of the machine are shown.
      '';
    };
    hide = programs "Desktop entries not to show." [ "htop" ];
    autostart = programs "Desktop entries to start with the person's session." [ "keepassxc" ];
  };
}
