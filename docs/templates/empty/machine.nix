# Everything of NixOS can be set here, and everything below `codchi`.
{ pkgs, ... }:
{
  environment.systemPackages = [ pkgs.git ];
}
