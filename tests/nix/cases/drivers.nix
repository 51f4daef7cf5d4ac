# The registry is the folder, and every record is complete.
{ codchi, lib, ... }:
lib.mapAttrs (_: driver: {
  inherit (driver)
    kind
    runnable
    supports
    variables
    ;
}) codchi.drivers
