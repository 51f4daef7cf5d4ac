# What a machine needs to run on the native driver is what every container needs (modules/container.nix).
{
  imports = [ ../../modules/resources.nix ];
}
