# Services that development machines run.
{
  imports = [
    ./cron.nix
    ./memcached.nix
    ./mysql.nix
    ./nginx.nix
    ./openssh.nix
    ./postgresql.nix
    ./redis.nix
  ];
}
