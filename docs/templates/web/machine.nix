{ config, pkgs, ... }:
let
  user = config.codchi.user.name;
in
{
  environment.systemPackages = [
    pkgs.curl
    pkgs.git
    pkgs.nodejs
  ];

  services.nginx = {
    enable = true;
    virtualHosts.localhost = {
      root = "/srv/www";
      locations."/api/".proxyPass = "http://127.0.0.1:3000/";
    };
  };
  systemd.tmpfiles.rules = [ "d /srv/www 0755 ${user} users - -" ];

  services.postgresql = {
    enable = true;
    # A database of your own: `psql` just works.
    ensureDatabases = [ user ];
    ensureUsers = [
      {
        name = user;
        ensureDBOwnership = true;
      }
    ];
  };

  services.redis.servers.cache = {
    enable = true;
    port = 6379;
  };

  # The page is at http://localhost:8080 on the host.
  codchi.ports."80".host = 8080;

  codchi.initScript = ''
    echo '<!doctype html><title>web</title><p>It works.' > /srv/www/index.html
  '';
}
