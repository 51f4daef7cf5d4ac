# MariaDB, under the name that NixOS has for it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.mysql;
  format = pkgs.formats.ini { listsAsDuplicateKeys = true; };
  inherit (lib) escapeShellArg;
  mysql = "${cfg.package}/bin/mariadb --socket=/run/mysqld/mysqld.sock -u root -N";
in
{
  options.services.mysql = {
    enable = mkEnableOption "MySQL server";
    package = mkOption {
      type = types.package;
      default = pkgs.mariadb;
      defaultText = lib.literalExpression "pkgs.mariadb";
      example = lib.literalExpression "pkgs.mariadb";
      description = "The server; MariaDB is what Debian has.";
    };
    user = mkOption {
      type = types.str;
      default = "mysql";
      description = "User it runs as.";
    };
    group = mkOption {
      type = types.str;
      default = "mysql";
      description = "Group it runs as.";
    };
    dataDir = mkOption {
      type = types.path;
      default = "/var/lib/mysql";
      description = "Folder of the data.";
    };
    configFile = mkOption {
      type = types.path;
      default = format.generate "my.cnf" cfg.settings;
      defaultText = lib.literalExpression "what `settings` gives";
      description = "The whole configuration.";
    };
    settings = mkOption {
      inherit (format) type;
      default = { };
      example = {
        mysqld.key_buffer_size = "6G";
      };
      description = "Settings of my.cnf.";
    };
    initialDatabases = mkOption {
      default = [ ];
      description = "Databases made with the data, each with SQL to begin with.";
      type = types.listOf (
        types.submodule {
          options = {
            name = mkOption {
              type = types.str;
              description = "Name of the database.";
            };
            schema = mkOption {
              type = types.nullOr types.path;
              default = null;
              description = "SQL run in it.";
            };
          };
        }
      );
    };
    inherit (import ./database.nix { inherit lib; }) initialScript ensureDatabases;
    ensureUsers = mkOption {
      default = [ ];
      description = "Users that are made when they are missing; they log in as the system's user of their name.";
      type = types.listOf (
        types.submodule {
          options = {
            name = mkOption {
              type = types.str;
              description = "Name of the user.";
            };
            ensurePermissions = mkOption {
              type = types.attrsOf types.str;
              default = { };
              example = {
                "database.*" = "ALL PRIVILEGES";
              };
              description = "What the user may do, by what it concerns.";
            };
          };
        }
      );
    };
  };

  config = lib.mkIf cfg.enable {
    services.mysql.settings.mysqld = {
      datadir = lib.mkDefault (toString cfg.dataDir);
      port = lib.mkDefault 3306;
      bind-address = lib.mkDefault "127.0.0.1";
      socket = lib.mkDefault "/run/mysqld/mysqld.sock";
      plugin-load-add = lib.mkIf (cfg.ensureUsers != [ ]) [ "auth_socket.so" ];
    };
    users.users = lib.optionalAttrs (cfg.user == "mysql") {
      mysql = {
        description = "MySQL server user";
        inherit (cfg) group;
        uid = 84;
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "mysql") { mysql.gid = 84; };
    environment.systemPackages = [ cfg.package ];
    environment.etc."my.cnf".source = cfg.configFile;

    systemd.services.mysql = {
      description = "MySQL Server";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      restartTriggers = [ cfg.configFile ];
      path = [ cfg.package ];
      preStart = ''
        if ! test -e ${escapeShellArg cfg.dataDir}/mysql; then
          mariadb-install-db --defaults-file=/etc/my.cnf --user=${cfg.user} --datadir=${escapeShellArg cfg.dataDir} --basedir=/usr --auth-root-authentication-method=socket
          touch ${escapeShellArg cfg.dataDir}/.first_startup
        fi
      '';
      # Root of the machine, and the server's own user, are its root.
      postStart = ''
        tries=0
        until ${mysql} -e 'SELECT 1' >/dev/null 2>&1; do
          tries=$((tries + 1))
          if [ "$tries" -ge 120 ]; then echo "the server does not answer" >&2; exit 1; fi
          sleep 0.5
        done
        if [ -e ${escapeShellArg cfg.dataDir}/.first_startup ]; then
          ${lib.concatMapStrings (db: ''
            ${mysql} -e ${escapeShellArg "CREATE DATABASE IF NOT EXISTS `${db.name}`"}
            ${lib.optionalString (
              db.schema != null
            ) "${mysql} ${escapeShellArg db.name} < ${escapeShellArg (toString db.schema)}"}
          '') cfg.initialDatabases}
          ${lib.optionalString (
            cfg.initialScript != null
          ) "${mysql} < ${escapeShellArg (toString cfg.initialScript)}"}
          rm ${escapeShellArg cfg.dataDir}/.first_startup
        fi
        ${lib.concatMapStrings (db: ''
          ${mysql} -e ${escapeShellArg "CREATE DATABASE IF NOT EXISTS `${db}`"}
        '') cfg.ensureDatabases}
        ${lib.concatMapStrings (user: ''
          ${mysql} -e ${escapeShellArg "CREATE USER IF NOT EXISTS '${user.name}'@'localhost' IDENTIFIED WITH unix_socket"}
          ${lib.concatStrings (
            lib.mapAttrsToList (what: permission: ''
              ${mysql} -e ${escapeShellArg "GRANT ${permission} ON ${what} TO '${user.name}'@'localhost'"}
            '') user.ensurePermissions
          )}
        '') cfg.ensureUsers}
      '';
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/mariadbd --defaults-file=/etc/my.cnf --basedir=/usr";
        # What starts after the server is root's, as whom it is administered.
        PermissionsStartOnly = true;
        Type = "notify";
        User = cfg.user;
        Group = cfg.group;
        RuntimeDirectory = "mysqld";
        StateDirectory = lib.mkIf (toString cfg.dataDir == "/var/lib/mysql") "mysql";
        StateDirectoryMode = "0700";
        Restart = "on-abort";
        RestartSec = "5s";
        TimeoutSec = 180;
        UMask = "0077";
      };
    };
  };
}
