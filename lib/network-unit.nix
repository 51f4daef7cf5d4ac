# A unit that sets the machine's network where no host outside of its namespaces does. What it set stays until the machine restarts:
# `script` is not run again by a switch.
{
  pkgs,
  description,
  script,
  unitConfig ? { },
}:
{
  inherit description script;
  wantedBy = [ "multi-user.target" ];
  before = [ "network.target" ];
  wants = [ "network.target" ];
  unitConfig = {
    DefaultDependencies = false;
  }
  // unitConfig;
  restartIfChanged = false;
  path = [ pkgs.iproute2 ];
  serviceConfig = {
    Type = "oneshot";
    RemainAfterExit = true;
  };
}
