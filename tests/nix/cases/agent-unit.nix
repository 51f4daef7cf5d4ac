# A switch leaves the agent alone, and a restarted agent leaves commands alone.
{ machine, ... }:
let
  unit = (machine [ ]).config.systemd.services.codchi-agent;
in
{
  inherit (unit) restartIfChanged wantedBy serviceConfig;
  user = unit.environment.CODCHI_USER;
}
