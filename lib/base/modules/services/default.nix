# Services that development machines run.
{
  imports = [
    ./caddy.nix
    ./cron.nix
    ./memcached.nix
    ./mysql.nix
    ./nats.nix
    ./nginx.nix
    ./openssh.nix
    ./postgresql.nix
    ./rabbitmq.nix
    ./redis.nix
  ];
}
