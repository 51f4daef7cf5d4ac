# What a machine needs to run on Incus is what every container needs (modules/container.nix).
{
  imports = [ ../../modules/resources.nix ];
}
