# needs: packages
# only: base
# Modules as people write them for NixOS, for what they develop: each comes to a system on the built-in base.
{ machine, lib, ... }:
let
  modules = {
    rails =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ ruby bundler nodejs yarn libyaml sqlite gnumake gcc pkg-config ];
        environment.variables.BUNDLE_FORCE_RUBY_PLATFORM = "1";
        services.postgresql = {
          enable = true;
          ensureDatabases = [ "app_development" ];
          ensureUsers = [ { name = "codchi"; ensureClauses.createdb = true; } ];
          authentication = "local all all trust";
        };
        services.redis.servers."".enable = true;
      };
    django =
      { pkgs, ... }:
      {
        environment.systemPackages = [
          (pkgs.python3.withPackages (ps: [ ps.django ps.celery ps.psycopg2 ]))
          pkgs.poetry
          pkgs.black
        ];
        services.rabbitmq = {
          enable = true;
          managementPlugin.enable = true;
        };
        services.postgresql.enable = true;
        systemd.services.worker = {
          after = [ "rabbitmq.service" ];
          wants = [ "rabbitmq.service" ];
          path = [ pkgs.celery ];
          script = "celery --version";
        };
      };
    node =
      { pkgs, ... }:
      {
        environment.systemPackages = [ pkgs.nodejs pkgs.yarn pkgs.jq pkgs.httpie ];
        services.redis.servers.sessions = { enable = true; port = 6379; };
        services.caddy = { enable = true; virtualHosts.":8080".extraConfig = "reverse_proxy localhost:3000"; };
        networking.firewall.allowedTCPPorts = [ 8080 ];
      };
    go =
      { pkgs, ... }:
      {
        environment.systemPackages = [ pkgs.go pkgs.gopls pkgs.delve pkgs.protobuf pkgs.gnumake ];
        environment.sessionVariables.GOPATH = "$HOME/go";
        services.nats = { enable = true; jetstream = true; settings.monitor_port = 8222; };
      };
    rust =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ rustc cargo clippy rustfmt gdb openocd gcc-arm-embedded stlink ];
        programs.direnv.enable = true;
        users.users.codchi.extraGroups = [ "dialout" ];
      };
    java =
      { pkgs, ... }:
      {
        programs.java.enable = true;
        environment.systemPackages = [ pkgs.maven pkgs.gradle pkgs.kotlin ];
        systemd.tmpfiles.rules = [ "d /srv/broker 0755 codchi users -" ];
      };
    php =
      { pkgs, ... }:
      {
        environment.systemPackages = [ pkgs.php pkgs.phpPackages.composer ];
        services.mysql = {
          enable = true;
          package = pkgs.mariadb;
          ensureDatabases = [ "shop" ];
          ensureUsers = [ { name = "codchi"; ensurePermissions."shop.*" = "ALL PRIVILEGES"; } ];
        };
        services.nginx = {
          enable = true;
          recommendedProxySettings = true;
          virtualHosts."shop.localhost" = {
            root = "/srv/shop";
            locations."/".index = "index.html";
          };
        };
      };
    data =
      { pkgs, ... }:
      {
        environment.systemPackages = [
          (pkgs.python3.withPackages (ps: with ps; [ numpy pandas matplotlib scipy jupyter ]))
          pkgs.R
          pkgs.graphviz
        ];
      };
    latex =
      { pkgs, ... }:
      {
        environment.systemPackages = [ pkgs.texliveMedium pkgs.pandoc pkgs.biber ];
        fonts.packages = [ pkgs.dejavu_fonts ];
        i18n.defaultLocale = "de_DE.UTF-8";
        time.timeZone = "Europe/Vienna";
      };
    functional =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ ghc cabal-install ocaml opam elixir erlang ];
      };
    cpp =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ clang clang-tools lldb cmake ninja meson ccache gdb valgrind cppcheck doxygen ];
        environment.variables = { CC = "clang"; CXX = "clang++"; };
      };
    operations =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ ansible jq yq age restic ];
        programs.ssh.extraConfig = "Host *.internal\n  User deploy";
        programs.git = { enable = true; config.url."ssh://git@".insteadOf = "https://"; };
      };
    containers =
      { pkgs, ... }:
      {
        virtualisation.podman = { enable = true; dockerCompat = true; defaultNetwork.settings.dns_enabled = true; };
        environment.systemPackages = [ pkgs.podman-compose pkgs.skopeo pkgs.buildah ];
      };
    desktop =
      { pkgs, ... }:
      {
        environment.systemPackages = with pkgs; [ gnome-text-editor gedit geany emacs firefox gtk3 ];
        programs.dconf.enable = true;
        fonts.enableDefaultPackages = true;
        xdg.mime.defaultApplications."text/plain" = "org.gnome.TextEditor.desktop";
      };
    mobile =
      { pkgs, ... }:
      {
        programs.java.enable = true;
        environment.systemPackages = with pkgs; [ git unzip curl clang cmake ninja pkg-config gtk3 android-tools ];
        users.users.codchi.extraGroups = [ "plugdev" ];
      };
  };
in
lib.mapAttrs (_: module: lib.hasSuffix ".drv" (machine [ module ]).config.system.build.toplevel.drvPath) modules
