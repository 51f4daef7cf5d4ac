# No driver: a plain NixOS system with Codchi's user, secrets and init script, and no host behind it.
{
  name = "none";
  kind = "none";
  description = "a plain NixOS system, with no host integration";
  runnable = false;
}
