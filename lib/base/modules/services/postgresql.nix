# The PostgreSQL server.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.postgresql;
  # 15 out of 15.14-0+deb12u1
  schema = lib.versions.major cfg.package.version;
  value =
    v:
    if v == true then
      "on"
    else if v == false then
      "off"
    else if lib.isString v then
      "'${lib.replaceStrings [ "'" ] [ "''" ] v}'"
    else
      toString v;
  configFile = pkgs.writeTextDir "postgresql.conf" (
    lib.concatStrings (
      lib.mapAttrsToList (n: v: "${n} = ${value v}\n") (lib.filterAttrs (_: v: v != null) cfg.settings)
    )
  );
  inherit (lib) escapeShellArg;
  clause = name: on: if on == null then "" else "${lib.optionalString (!on) "NO"}${lib.toUpper name}";
  identifier = s: ''"${lib.replaceStrings [ "\"" ] [ "\"\"" ] s}"'';
  clauses = [
    "superuser"
    "createrole"
    "createdb"
    "inherit"
    "login"
    "replication"
    "bypassrls"
  ];
in
{
  imports = [
    (lib.mkRenamedOptionModule
      [ "services" "postgresql" "port" ]
      [ "services" "postgresql" "settings" "port" ]
    )
    (lib.mkRenamedOptionModule
      [ "services" "postgresql" "extraPlugins" ]
      [ "services" "postgresql" "extensions" ]
    )
  ];

  options.services.postgresql = {
    enable = mkEnableOption "PostgreSQL Server";
    enableJIT = mkEnableOption "JIT support";
    package = lib.mkPackageOption pkgs "postgresql" { };
    finalPackage = mkOption {
      type = types.package;
      readOnly = true;
      default = cfg.package;
      defaultText = lib.literalExpression "config.services.postgresql.package";
      description = "The package that is used.";
    };
    checkConfig = mkOption {
      type = types.bool;
      default = true;
      description = "Accepted; the configuration is read when the server starts.";
    };
    dataDir = mkOption {
      type = types.path;
      default = "/var/lib/postgresql/${schema}";
      defaultText = lib.literalExpression ''"/var/lib/postgresql/''${major version}"'';
      description = "Folder of the data.";
    };
    authentication = mkOption {
      type = types.lines;
      default = "";
      description = "Lines of pg_hba.conf, before those that let local users in.";
    };
    identMap = mkOption {
      type = types.lines;
      default = "";
      description = "Lines of pg_ident.conf.";
    };
    initdbArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Arguments of initdb.";
    };
    inherit (import ./database.nix { inherit lib; }) initialScript ensureDatabases;
    ensureUsers = mkOption {
      default = [ ];
      description = "Roles that are made when they are missing.";
      type = types.listOf (
        types.submodule {
          options = {
            name = mkOption {
              type = types.str;
              description = "Name of the role.";
            };
            ensureDBOwnership = mkOption {
              type = types.bool;
              default = false;
              description = "Whether it owns the database of its name.";
            };
            ensureClauses = mkOption {
              default = { };
              description = "What the role may do.";
              type = types.submodule {
                options = lib.genAttrs clauses (
                  name:
                  mkOption {
                    type = types.nullOr types.bool;
                    default = null;
                    description = "Whether the role has `${lib.toUpper name}`; null: as it is.";
                  }
                );
              };
            };
          };
        }
      );
    };
    enableTCPIP = mkOption {
      type = types.bool;
      default = false;
      description = "Whether other hosts may connect.";
    };
    extensions = mkOption {
      type = types.either (types.functionTo (types.listOf types.path)) (types.listOf types.path);
      default = _: [ ];
      example = lib.literalExpression "_: [ pkgs.postgresql-15-postgis-3 ]";
      description = "Packages of extensions. The function gets the package set.";
    };
    settings = mkOption {
      default = { };
      description = "Settings of postgresql.conf.";
      type = types.submodule {
        freeformType = types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.bool
              types.float
              types.int
              types.str
            ]
          )
        );
        options = {
          shared_preload_libraries = mkOption {
            type = types.nullOr (
              types.coercedTo (types.listOf types.str) (lib.concatStringsSep ",") types.commas
            );
            default = null;
            description = "Libraries loaded with the server.";
          };
          log_line_prefix = mkOption {
            type = types.str;
            default = "[%p] ";
            description = "What each line of the log begins with.";
          };
          port = mkOption {
            type = types.port;
            default = 5432;
            description = "Port.";
          };
        };
      };
    };
    superUser = mkOption {
      type = types.str;
      default = "postgres";
      internal = true;
      readOnly = true;
      description = "The superuser.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = map (u: {
      assertion = u.ensureDBOwnership -> lib.elem u.name cfg.ensureDatabases;
      message = "`services.postgresql.ensureUsers': `${u.name}' is to own a database of its name, which `ensureDatabases' does not list";
    }) cfg.ensureUsers;

    services.postgresql = {
      settings = {
        hba_file = "${pkgs.writeText "pg_hba.conf" cfg.authentication}";
        ident_file = "${pkgs.writeText "pg_ident.conf" cfg.identMap}";
        log_destination = "stderr";
        listen_addresses = lib.mkDefault (if cfg.enableTCPIP then "*" else "localhost");
        unix_socket_directories = lib.mkDefault "/run/postgresql";
        jit = lib.mkDefault (if cfg.enableJIT then "on" else "off");
      };
      # Local users are who they say they are.
      authentication = lib.mkMerge [
        (lib.mkBefore "# Generated file; do not edit!")
        (lib.mkAfter ''
          local all postgres         peer map=postgres
          local all all              peer
          host  all all 127.0.0.1/32 md5
          host  all all ::1/128      md5
        '')
      ];
      identMap = lib.mkAfter ''
        postgres postgres postgres
        postgres root     postgres
      '';
    };

    users.users.postgres = {
      name = "postgres";
      uid = 71;
      group = "postgres";
      description = "PostgreSQL server user";
      home = cfg.dataDir;
      useDefaultShell = true;
    };
    users.groups.postgres.gid = 71;

    environment.systemPackages = [
      cfg.package
    ]
    ++ (if lib.isFunction cfg.extensions then cfg.extensions pkgs else cfg.extensions);

    systemd.targets.postgresql = {
      description = "PostgreSQL";
      wantedBy = [ "multi-user.target" ];
      requires = [
        "postgresql.service"
        "postgresql-setup.service"
      ];
    };
    systemd.services.postgresql = {
      description = "PostgreSQL Server";
      after = [ "network.target" ];
      partOf = [ "postgresql.target" ];
      environment.PGDATA = cfg.dataDir;
      path = [ cfg.package ];
      preStart = ''
        if ! test -e ${escapeShellArg cfg.dataDir}/PG_VERSION; then
          rm -f ${escapeShellArg cfg.dataDir}/*.conf
          initdb -U ${cfg.superUser} ${lib.escapeShellArgs cfg.initdbArgs}
          touch ${escapeShellArg cfg.dataDir}/.first_startup
        fi
        ln -sfn ${configFile}/postgresql.conf ${escapeShellArg cfg.dataDir}/postgresql.conf
      '';
      unitConfig.RequiresMountsFor = toString cfg.dataDir;
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/postgres";
        ExecReload = "/usr/bin/kill -HUP $MAINPID";
        User = "postgres";
        Group = "postgres";
        RuntimeDirectory = "postgresql";
        StateDirectory = lib.mkIf (
          cfg.dataDir == "/var/lib/postgresql/${schema}"
        ) "postgresql postgresql/${schema}";
        StateDirectoryMode = "0750";
        Type = "notify";
        # A fast shutdown: open transactions are rolled back.
        KillSignal = "SIGINT";
        KillMode = "mixed";
        TimeoutSec = 120;
        Restart = "always";
        UMask = "0027";
      };
    };
    systemd.services.postgresql-setup = {
      description = "PostgreSQL Setup Scripts";
      requires = [ "postgresql.service" ];
      after = [ "postgresql.service" ];
      partOf = [ "postgresql.service" ];
      path = [ cfg.package ];
      environment.PGPORT = toString cfg.settings.port;
      serviceConfig = {
        User = "postgres";
        Group = "postgres";
        Type = "oneshot";
        RemainAfterExit = true;
      };
      script = ''
        if test -e ${escapeShellArg cfg.dataDir}/.first_startup; then
          ${lib.optionalString (
            cfg.initialScript != null
          ) "psql -v ON_ERROR_STOP=1 -f ${escapeShellArg (toString cfg.initialScript)} -d postgres"}
          rm -f ${escapeShellArg cfg.dataDir}/.first_startup
        fi
        query() { psql -v ON_ERROR_STOP=1 -tA -d postgres "$@"; }
        ${lib.concatMapStrings (db: ''
          if [ -z "$(query -c ${escapeShellArg "SELECT 1 FROM pg_database WHERE datname = '${db}'"})" ]; then
            query -c ${escapeShellArg "CREATE DATABASE ${identifier db}"}
          fi
        '') cfg.ensureDatabases}
        ${lib.concatMapStrings (
          u:
          let
            wanted = lib.concatStringsSep " " (
              lib.filter (c: c != "") (map (n: clause n u.ensureClauses.${n}) clauses)
            );
          in
          ''
            if [ -z "$(query -c ${escapeShellArg "SELECT 1 FROM pg_roles WHERE rolname = '${u.name}'"})" ]; then
              query -c ${escapeShellArg "CREATE USER ${identifier u.name}"}
            fi
            ${lib.optionalString (
              wanted != ""
            ) "query -c ${escapeShellArg "ALTER ROLE ${identifier u.name} ${wanted}"}"}
            ${lib.optionalString u.ensureDBOwnership "query -c ${escapeShellArg "ALTER DATABASE ${identifier u.name} OWNER TO ${identifier u.name}"}"}
          ''
        ) cfg.ensureUsers}
      '';
    };
  };
}
