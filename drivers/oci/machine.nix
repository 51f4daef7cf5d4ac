# What a machine needs to run under an OCI runtime is what every container needs (modules/container.nix).
{
  imports = [ ../../modules/resources.nix ];
}
