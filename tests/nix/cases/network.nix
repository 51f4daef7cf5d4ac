# Nothing of a host is in the system.
{ machine, ... }:
let
  inherit (machine [ ]) config;
in
{
  inherit (config.networking) hostName useDHCP useHostResolvConf;
  resolvConf = "${config.environment.etc."resolv.conf".source}";
  inherit (config.boot) isContainer;
}
