# needs: packages
# A module's settings: sets merge, lists grow, the rest is replaced.
{ machine, ... }:
let
  module = {
    codchi.driver.settings.native = {
      environment.EXTRA = "1";
      devices = [ "vhost-net?" ];
      stop.timeoutSeconds = 5;
    };
  };
  inherit ((machine [ module ]).config.codchi.build.manifest) engine needs;
in
{
  inherit (engine) environment devices stop;
  inherit (needs) driverSettings;
}
