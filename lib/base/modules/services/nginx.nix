# The nginx web server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines yes;
  cfg = config.services.nginx;
  maybe =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  location = {
    options = {
      proxyPass = maybe types.str "Server that requests are passed to.";
      proxyWebsockets = yes false "Whether websockets pass.";
      recommendedProxySettings = mkOption {
        type = types.bool;
        default = cfg.recommendedProxySettings;
        defaultText = lib.literalExpression "config.services.nginx.recommendedProxySettings";
        description = "Whether the usual headers are set.";
      };
      uwsgiPass = maybe types.str "uwsgi server that requests are passed to.";
      index = maybe types.str "Index files.";
      tryFiles = maybe types.str "Files to try.";
      root = maybe types.path "Folder of the files.";
      alias = maybe types.path "Folder the location stands for.";
      "return" = maybe (types.oneOf [
        types.str
        types.int
      ]) "What is answered.";
      fastcgiParams = mkOption {
        type = types.attrsOf (types.either types.str types.path);
        default = { };
        description = "FastCGI parameters.";
      };
      basicAuth = mkOption {
        type = types.attrsOf types.str;
        default = { };
        description = "Users and passwords; they lie in the store for all to read.";
      };
      basicAuthFile = maybe types.path "A file of users and passwords.";
      extraConfig = lines "Further lines.";
      priority = mkOption {
        type = types.int;
        default = 1000;
        description = "Place among the locations; smaller ones come first.";
      };
    };
  };

  listen = types.submodule {
    options = {
      addr = mkOption {
        type = types.str;
        description = "Address or socket.";
      };
      port = mkOption {
        type = types.nullOr types.port;
        default = null;
        description = "Port.";
      };
      ssl = yes false "Whether it speaks TLS.";
      proxyProtocol = yes false "Whether it speaks the PROXY protocol.";
      extraParameters = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "Further parameters.";
      };
    };
  };

  host =
    { name, ... }:
    {
      options = {
        serverName = mkOption {
          type = types.nullOr types.str;
          default = name;
          description = "Name of the server.";
        };
        serverAliases = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Further names.";
        };
        listen = mkOption {
          type = types.listOf listen;
          default = [ ];
          description = "Where it listens; none: everywhere, on 80, and on 443 with TLS.";
        };
        listenAddresses = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Addresses with the default ports.";
        };
        default = yes false "Whether it answers for unknown names.";
        enableACME = yes false "Whether certificates come from an authority. This base has no such client.";
        addSSL = yes false "Whether it speaks TLS too.";
        onlySSL = yes false "Whether it speaks TLS only.";
        forceSSL = yes false "Whether requests without TLS are sent to TLS.";
        sslCertificate = mkOption {
          type = types.path;
          description = "The certificate.";
        };
        sslCertificateKey = mkOption {
          type = types.path;
          description = "Its key.";
        };
        http2 = yes true "Whether HTTP/2 is spoken.";
        root = maybe types.path "Folder of the files.";
        globalRedirect = maybe types.str "Server that all requests are sent to.";
        redirectCode = mkOption {
          type = types.ints.between 300 399;
          default = 301;
          description = "How they are sent.";
        };
        basicAuth = mkOption {
          type = types.attrsOf types.str;
          default = { };
          description = "Users and passwords; they lie in the store for all to read.";
        };
        basicAuthFile = maybe types.path "A file of users and passwords.";
        extraConfig = lines "Further lines.";
        locations = mkOption {
          type = types.attrsOf (types.submodule location);
          default = { };
          description = "Locations.";
        };
      };
    };

  line = name: value: lib.optionalString (value != null) "${name} ${toString value};\n";
  auth =
    zone:
    if zone.basicAuthFile != null then
      "auth_basic secured;\nauth_basic_user_file ${toString zone.basicAuthFile};\n"
    else if zone.basicAuth != { } then
      "auth_basic secured;\nauth_basic_user_file ${
        pkgs.writeText "htpasswd" (
          lib.concatStrings (lib.mapAttrsToList (u: p: "${u}:{PLAIN}${p}\n") zone.basicAuth)
        )
      };\n"
    else
      "";

  proxyHeaders = ''
    proxy_set_header Host $host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $host;
    proxy_set_header X-Forwarded-Server $host;
  '';

  renderLocation = path: l: ''
    location ${path} {
    ${line "proxy_pass" l.proxyPass}${lib.optionalString l.proxyWebsockets "proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection $connection_upgrade;\n"}${line "uwsgi_pass" l.uwsgiPass}${line "index" l.index}${line "try_files" l.tryFiles}${line "root" l.root}${line "alias" l.alias}${
      lib.concatStrings (
        lib.mapAttrsToList (n: v: "fastcgi_param ${n} \"${toString v}\";\n") l.fastcgiParams
      )
    }${line "return" l."return"}${l.extraConfig}
    ${lib.optionalString (l.proxyPass != null && l.recommendedProxySettings) proxyHeaders}${auth l}}
  '';

  renderHost =
    name: h:
    let
      tls = h.addSSL || h.onlySSL || h.forceSSL;
      addresses = if h.listenAddresses != [ ] then h.listenAddresses else cfg.defaultListenAddresses;
      listens =
        if h.listen != [ ] then
          h.listen
        else
          lib.concatMap (
            addr:
            lib.optional tls {
              inherit addr;
              port = cfg.defaultSSLListenPort;
              ssl = true;
              proxyProtocol = false;
              extraParameters = [ ];
            }
            ++ lib.optional (!h.onlySSL) {
              inherit addr;
              port = cfg.defaultHTTPListenPort;
              ssl = false;
              proxyProtocol = false;
              extraParameters = [ ];
            }
          ) addresses;
      listenLine =
        l:
        "listen ${l.addr}${
          lib.optionalString (l.port != null) ":${toString l.port}"
        }${lib.optionalString h.default " default_server"}${lib.optionalString l.ssl " ssl"}${lib.optionalString l.proxyProtocol " proxy_protocol"}${
          lib.optionalString (l.extraParameters != [ ]) " ${lib.concatStringsSep " " l.extraParameters}"
        };\n";
      names = "server_name ${toString h.serverName} ${lib.concatStringsSep " " h.serverAliases};\n";
      plainListens = lib.filter (l: !l.ssl) listens;
      tlsListens = lib.filter (l: l.ssl) listens;
      locations = lib.sortOn (l: l.value.priority) (lib.attrsToList h.locations);
    in
    lib.optionalString h.forceSSL ''
      server {
      ${lib.concatMapStrings listenLine plainListens}${names}
      location / { return ${toString h.redirectCode} https://$host$request_uri; }
      }
    ''
    + ''
      server {
      ${
        lib.concatMapStrings listenLine (if h.forceSSL then tlsListens else listens)
      }${names}${lib.optionalString tls "ssl_certificate ${toString h.sslCertificate};\nssl_certificate_key ${toString h.sslCertificateKey};\n"}${line "root" h.root}${
        lib.optionalString (h.globalRedirect != null)
          "location / { return ${toString h.redirectCode} http${lib.optionalString tls "s"}://${h.globalRedirect}$request_uri; }\n"
      }${auth h}${lib.concatMapStrings (l: renderLocation l.name l.value) locations}${h.extraConfig}
      }
    '';

  upstream =
    name: u:
    "upstream ${name} {\n"
    + lib.concatStrings (
      lib.mapAttrsToList (
        server: settings:
        "server ${server} ${
          lib.concatStringsSep " " (
            lib.mapAttrsToList (
              n: v: if lib.isBool v then lib.optionalString v n else "${n}=${toString v}"
            ) settings
          )
        };\n"
      ) u.servers
    )
    + u.extraConfig
    + "}\n";

  configFile = pkgs.writeText "nginx.conf" (
    ''
      pid /run/nginx/nginx.pid;
      error_log ${cfg.logError};
      daemon off;
      ${cfg.config}
    ''
    + lib.optionalString (
      cfg.eventsConfig != "" || cfg.config == ""
    ) "events {\n${cfg.eventsConfig}\n}\n"
    + lib.optionalString (cfg.httpConfig == "" && cfg.config == "") ''
      http {
      ${cfg.commonHttpConfig}
      include /etc/nginx/mime.types;
      default_type application/octet-stream;
      ${lib.concatStrings (lib.mapAttrsToList upstream cfg.upstreams)}
      ${lib.optionalString cfg.recommendedOptimisation "sendfile on;\ntcp_nopush on;\ntcp_nodelay on;\nkeepalive_timeout 65;\ntypes_hash_max_size 4096;"}
      ${lib.optionalString cfg.recommendedTlsSettings "ssl_session_timeout 1d;\nssl_session_cache shared:SSL:10m;\nssl_session_tickets off;\nssl_prefer_server_ciphers off;"}
      ssl_protocols ${cfg.sslProtocols};
      ${line "ssl_ciphers" (
        if lib.isList cfg.sslCiphers then lib.concatStringsSep ":" cfg.sslCiphers else cfg.sslCiphers
      )}
      ${line "ssl_dhparam" cfg.sslDhparam}
      ${lib.optionalString cfg.recommendedGzipSettings "gzip on;\ngzip_static on;\ngzip_vary on;\ngzip_comp_level 5;\ngzip_min_length 256;\ngzip_proxied expired no-cache no-store private auth;\ngzip_types application/javascript application/json application/xml text/css text/plain text/xml image/svg+xml;"}
      ${lib.optionalString cfg.recommendedProxySettings "proxy_redirect off;\nproxy_connect_timeout ${cfg.proxyTimeout};\nproxy_send_timeout ${cfg.proxyTimeout};\nproxy_read_timeout ${cfg.proxyTimeout};\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";"}
      map $http_upgrade $connection_upgrade {
        default upgrade;
        "" close;
      }
      client_max_body_size ${cfg.clientMaxBodySize};
      server_tokens ${if cfg.serverTokens then "on" else "off"};
      ${cfg.appendHttpConfig}
      ${lib.concatStrings (lib.mapAttrsToList renderHost cfg.virtualHosts)}
      ${lib.optionalString cfg.statusPage "server {\nlisten 127.0.0.1:80;\nserver_name localhost;\nlocation /nginx_status {\nstub_status on;\naccess_log off;\nallow 127.0.0.1;\ndeny all;\n}\n}"}
      }
    ''
    + lib.optionalString (cfg.httpConfig != "") "http {\n${cfg.httpConfig}\n}\n"
    + lib.optionalString (cfg.streamConfig != "") "stream {\n${cfg.streamConfig}\n}\n"
    + cfg.appendConfig
  );
  configPath = if cfg.enableReload then "/etc/nginx/nginx.conf" else configFile;
in
{
  options.services.nginx = {
    enable = mkEnableOption "Nginx Web Server";
    package = lib.mkPackageOption pkgs "nginx" { };
    user = mkOption {
      type = types.str;
      default = "nginx";
      description = "User it runs as.";
    };
    group = mkOption {
      type = types.str;
      default = "nginx";
      description = "Group it runs as.";
    };
    statusPage = yes false "Whether the local host may ask for `/nginx_status`.";
    recommendedTlsSettings = yes false "Whether the usual TLS settings are taken.";
    recommendedOptimisation = yes false "Whether the usual optimisations are taken.";
    recommendedGzipSettings = yes false "Whether the usual compression is taken.";
    recommendedBrotliSettings = yes false "Accepted; Debian's nginx has brotli as a module of its own.";
    recommendedProxySettings = yes false "Whether the usual proxy settings are taken.";
    proxyTimeout = mkOption {
      type = types.str;
      default = "60s";
      description = "Time limits of the recommended proxy settings.";
    };
    defaultListenAddresses = mkOption {
      type = types.listOf types.str;
      default = [ "0.0.0.0" ] ++ lib.optional (config.networking.enableIPv6 or true) "[::0]";
      defaultText = lib.literalExpression ''[ "0.0.0.0" ] ++ lib.optional config.networking.enableIPv6 "[::0]"'';
      description = "Addresses of virtual hosts that name none.";
    };
    defaultHTTPListenPort = mkOption {
      type = types.port;
      default = 80;
      description = "Port of virtual hosts that name none.";
    };
    defaultSSLListenPort = mkOption {
      type = types.port;
      default = 443;
      description = "The same with TLS.";
    };
    logError = mkOption {
      type = types.str;
      default = "stderr";
      description = "Where errors are logged.";
    };
    config = lines "The whole configuration, instead of the following.";
    appendConfig = lines "Lines at the end of the configuration.";
    commonHttpConfig = lines "Lines at the beginning of the `http` block.";
    httpConfig = lines "The whole `http` block, instead of what virtual hosts give.";
    appendHttpConfig = lines "Lines in the `http` block, before the servers.";
    streamConfig = lines "The `stream` block.";
    eventsConfig = lines "The `events` block.";
    enableReload = yes false "Whether a changed configuration is loaded without a restart.";
    serverTokens = yes false "Whether answers tell the version.";
    clientMaxBodySize = mkOption {
      type = types.str;
      default = "10m";
      description = "How large a request may be.";
    };
    sslCiphers = maybe (types.either types.str (types.listOf types.str)) "Ciphers; none: nginx's own.";
    sslProtocols = mkOption {
      type = types.str;
      default = "TLSv1.2 TLSv1.3";
      description = "Versions of TLS.";
    };
    sslDhparam = maybe types.path "Diffie-Hellman parameters.";
    additionalModules = mkOption {
      type = types.listOf types.raw;
      default = [ ];
      description = "Accepted; modules of Debian are packages such as `libnginx-mod-stream`.";
    };
    upstreams = mkOption {
      default = { };
      description = "Groups of servers.";
      type = types.attrsOf (
        types.submodule {
          options = {
            servers = mkOption {
              type = types.attrsOf (
                types.attrsOf (
                  types.oneOf [
                    types.bool
                    types.int
                    types.str
                  ]
                )
              );
              default = { };
              description = "Addresses with their parameters.";
            };
            extraConfig = lines "Further lines.";
          };
        }
      );
    };
    virtualHosts = mkOption {
      type = types.attrsOf (types.submodule host);
      default = {
        localhost = { };
      };
      description = "Virtual hosts.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = lib.mapAttrsToList (name: h: {
      assertion = !h.enableACME;
      message = "the debian base has no ACME client for `services.nginx.virtualHosts.${name}.enableACME'; give `sslCertificate' and `sslCertificateKey'";
    }) cfg.virtualHosts;

    users.users = lib.optionalAttrs (cfg.user == "nginx") {
      nginx = {
        inherit (cfg) group;
        isSystemUser = true;
        uid = 60;
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "nginx") { nginx.gid = 60; };
    environment.systemPackages = [ cfg.package ];
    environment.etc = lib.mkIf cfg.enableReload { "nginx/nginx.conf".source = configFile; };

    systemd.services.nginx = {
      description = "Nginx Web Server";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      stopIfChanged = false;
      reloadTriggers = lib.optional cfg.enableReload configFile;
      serviceConfig = {
        ExecStartPre = "${cfg.package}/bin/nginx -e stderr -t -c ${configPath}";
        ExecStart = "${cfg.package}/bin/nginx -e stderr -c ${configPath}";
        ExecReload = [
          "${cfg.package}/bin/nginx -e stderr -t -c ${configPath}"
          "/usr/bin/kill -HUP $MAINPID"
        ];
        Restart = "always";
        RestartSec = "10s";
        User = cfg.user;
        Group = cfg.group;
        RuntimeDirectory = "nginx";
        RuntimeDirectoryMode = "0750";
        CacheDirectory = "nginx";
        CacheDirectoryMode = "0750";
        LogsDirectory = "nginx";
        LogsDirectoryMode = "0750";
        # Debian's nginx keeps bodies of requests here.
        StateDirectory = "nginx";
        AmbientCapabilities = [
          "CAP_NET_BIND_SERVICE"
        ];
        CapabilityBoundingSet = [
          "CAP_NET_BIND_SERVICE"
        ];
        NoNewPrivileges = true;
        ProtectHome = lib.mkDefault true;
        PrivateTmp = true;
        UMask = "0027";
      };
    };
  };
}
