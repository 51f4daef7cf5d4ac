# The person's account.
{ lib, machine, ... }:
let
  inherit
    (machine [
      {
        codchi.user = {
          name = "ada";
          groups = [ "video" ];
        };
      }
    ])
    config
    ;
  user = config.users.users.ada;
in
{
  inherit (user)
    isNormalUser
    uid
    home
    group
    linger
    ;
  extraGroups = lib.sort (a: b: a < b) user.extraGroups;
  sudoNeedsPassword = config.security.sudo.wheelNeedsPassword;
}
