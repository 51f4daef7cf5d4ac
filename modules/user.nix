{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;
in
{
  imports = [ ./enable.nix ];

  options.codchi.user = {
    name = lib.mkOption {
      type = lib.types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "codchi";
      example = "ada";
      description = "Login name of the person's account in the machine.";
    };
    uid = lib.mkOption {
      type = lib.types.ints.between 1000 60000;
      default = 1000;
      example = 1001;
      description = "Numeric id of that account in the machine.";
    };
    shell = lib.mkOption {
      type = lib.types.either lib.types.package lib.types.path;
      default = pkgs.bashInteractive;
      defaultText = lib.literalExpression "pkgs.bashInteractive";
      example = lib.literalExpression "pkgs.zsh";
      description = "Login shell of that account.";
    };
    groups = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "docker" ];
      description = "Groups of that account, besides `wheel`.";
    };
  };

  config = lib.mkIf cfg.enable {
    users.users.${cfg.user.name} = {
      isNormalUser = true;
      inherit (cfg.user) uid shell;
      description = lib.mkDefault "Codchi user";
      extraGroups = [ "wheel" ] ++ cfg.user.groups;
      # Its user units run whether or not someone is logged in: the host enters without a log-in.
      linger = lib.mkDefault true;
      # A machine has the ids 0 to 65535 only, so those that containers within it use cannot lie where a host has them.
      subUidRanges = lib.mkDefault [
        {
          startUid = 10000;
          count = 50000;
        }
      ];
      subGidRanges = lib.mkDefault [
        {
          startGid = 10000;
          count = 50000;
        }
      ];
    };
    # The host opens every door of a machine; a password inside would protect nothing.
    security.sudo.wheelNeedsPassword = lib.mkDefault false;
    users.allowNoPasswordLogin = lib.mkDefault true;
  };
}
