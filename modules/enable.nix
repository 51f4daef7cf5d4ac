{ config, lib, ... }:
let
  cfg = config.codchi;
in
{
  options.codchi.enable = lib.mkOption {
    type = lib.types.bool;
    default = false;
    example = true;
    description = ''
      Whether this system is a Codchi machine. While it is false, importing the module changes nothing.
      `codchi.lib.codeMachine` and exports set it.
    '';
  };

  config = lib.mkIf cfg.enable {
    # A machine is rebuilt many times a day; manuals are a large part of evaluating and building one.
    documentation.enable = lib.mkDefault false;
  };
}
