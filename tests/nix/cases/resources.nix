# needs: packages
# Without anybody's word a machine's tasks are limited, and nothing else is.
{ machine, ... }:
let
  inherit ((machine [ ]).config.codchi.build.manifest) engine resources;
  unlimited = (machine [ { codchi.resources.tasks = null; } ]).config.codchi.build.manifest;
in
{
  inherit resources;
  engine = engine.resources;
  unlimited = unlimited.engine.resources.tasks;
}
