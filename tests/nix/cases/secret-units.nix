# Services get their credentials; what only values could tell is nowhere.
{ machine, lib, ... }:
let
  config =
    (machine [
      {
        codchi.secrets = {
          TOKEN.services = [ "api" ];
          extra = {
            kind = "credential";
            required = false;
            services = [ "api.service" ];
            userServices = [ "helper" ];
          };
          config = {
            kind = "file";
            path = "/home/codchi/.config/x";
          };
        };
        systemd.services.api.script = "true";
        systemd.user.services.helper.script = "true";
      }
    ]).config;
  load = unit: {
    inherit (unit.serviceConfig) LoadCredential;
    SetCredential = unit.serviceConfig.SetCredential or [ ];
  };
in
{
  api = load config.systemd.services.api;
  helper = load config.systemd.user.services.helper;
  declared = builtins.fromJSON config.environment.etc."codchi/secrets.json".text;
  unit = {
    inherit (config.systemd.services.codchi-secrets) wantedBy before;
    inherit (config.systemd.services.codchi-secrets.serviceConfig) ExecStart Type;
  };
}
