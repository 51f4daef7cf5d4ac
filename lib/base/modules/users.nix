# Users and groups. Activation merges them with what the machine has (codchi-base-init).
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.users;
  nologin = "/run/current-system/sw/bin/nologin";

  nullOr =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  range =
    what:
    types.submodule {
      options = {
        "start${what}" = mkOption {
          type = types.int;
          description = "First id.";
        };
        count = mkOption {
          type = types.int;
          default = 1;
          description = "How many.";
        };
      };
    };

  user =
    { name, config, ... }:
    {
      options = {
        enable = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the account is there.";
        };
        name = mkOption {
          type = types.str;
          default = name;
          description = "Login name.";
        };
        description = mkOption {
          type = types.str;
          default = "";
          description = "The person's name.";
        };
        uid = nullOr types.int "Numeric id; none: chosen at activation and kept.";
        isNormalUser = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it is a person's account.";
        };
        isSystemUser = mkOption {
          type = types.bool;
          default = false;
          description = "Whether it is a service's account.";
        };
        group = mkOption {
          type = types.str;
          default = "";
          description = "Primary group.";
        };
        extraGroups = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Further groups.";
        };
        home = mkOption {
          type = types.path;
          default = "/var/empty";
          description = "Home directory.";
        };
        homeMode = mkOption {
          type = types.strMatching "[0-7]{1,5}";
          default = "700";
          description = "Mode of the home directory when it is made.";
        };
        createHome = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the home directory is made.";
        };
        shell = mkOption {
          type = types.nullOr (types.either types.package types.path);
          default = nologin;
          description = "Login shell.";
        };
        ignoreShellProgramCheck = mkOption {
          type = types.bool;
          default = false;
          description = "Accepted; nothing is checked.";
        };
        useDefaultShell = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the shell is `users.defaultUserShell`.";
        };
        packages = mkOption {
          type = types.listOf types.package;
          default = [ ];
          description = "Packages that only this user has.";
        };
        linger = mkOption {
          type = types.nullOr types.bool;
          default = null;
          description = "Whether the user's services run without a login; none: left as it is.";
        };
        expires = nullOr types.str "Date the account ends on, as YYYY-MM-DD.";
        cryptHomeLuks = nullOr types.str "Not in this base.";
        pamMount = mkOption {
          type = types.attrsOf types.str;
          default = { };
          description = "Not in this base.";
        };
        password = nullOr types.str "Password in clear text, world-readable in the store.";
        hashedPassword = nullOr types.str "Hashed password.";
        hashedPasswordFile = nullOr types.str "File with the hashed password.";
        initialPassword = nullOr types.str "Password in clear text that the account starts with.";
        initialHashedPassword = nullOr types.str "Hashed password that the account starts with.";
        subUidRanges = mkOption {
          type = types.listOf (range "Uid");
          default = [ ];
          description = "Ranges of subordinate user ids.";
        };
        subGidRanges = mkOption {
          type = types.listOf (range "Gid");
          default = [ ];
          description = "Ranges of subordinate group ids.";
        };
        autoSubUidGidRange = mkOption {
          type = types.bool;
          default = false;
          description = "Whether a range of 65536 subordinate ids is chosen.";
        };
        openssh.authorizedKeys = {
          keys = mkOption {
            type = types.listOf types.singleLineStr;
            default = [ ];
            description = "Public keys that may log in.";
          };
          keyFiles = mkOption {
            type = types.listOf types.path;
            default = [ ];
            description = "Files of such keys.";
          };
        };
      };
      config = lib.mkMerge [
        {
          shell = lib.mkIf config.useDefaultShell (lib.mkDefault cfg.defaultUserShell);
        }
        (lib.mkIf config.isNormalUser {
          group = lib.mkDefault "users";
          createHome = lib.mkDefault true;
          home = lib.mkDefault "/home/${config.name}";
          homeMode = lib.mkDefault "700";
          useDefaultShell = lib.mkDefault true;
          isSystemUser = lib.mkDefault false;
          autoSubUidGidRange = lib.mkIf (config.subUidRanges == [ ] && config.subGidRanges == [ ]) (lib.mkDefault true);
        })
      ];
    };

  group =
    { name, ... }:
    {
      options = {
        name = mkOption {
          type = types.str;
          default = name;
          description = "Name.";
        };
        gid = nullOr types.int "Numeric id; none: chosen at activation and kept.";
        members = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Members besides those whose `extraGroups` name it.";
        };
      };
    };

  people = lib.filterAttrs (_: u: u.enable) cfg.users;

  # Accounts and groups that Debian's services or NixOS modules count on. The numbers are those of NixOS, so that a
  # home or a state directory keeps its owner between the two bases.
  systemUsers = {
    messagebus = 4;
    systemd-coredump = 151;
    systemd-network = 152;
    systemd-resolve = 153;
    systemd-timesync = 154;
  };
  systemGroups = {
    root = 0;
    wheel = 1;
    kmem = 2;
    tty = 3;
    messagebus = 4;
    disk = 6;
    audio = 17;
    floppy = 18;
    uucp = 19;
    lp = 20;
    cdrom = 24;
    tape = 25;
    video = 26;
    dialout = 27;
    utmp = 29;
    adm = 55;
    systemd-journal = 62;
    keys = 96;
    users = 100;
    systemd-coredump = 151;
    systemd-network = 152;
    systemd-resolve = 153;
    systemd-timesync = 154;
    input = 174;
    kvm = 302;
    render = 303;
    sgx = 304;
    shadow = 318;
    clock = 405;
    nixbld = 30000;
    nogroup = 65534;
  };

  password =
    u:
    if u.hashedPasswordFile != null then
      { file = u.hashedPasswordFile; }
    else if u.hashedPassword != null then
      { hashed = u.hashedPassword; }
    else if u.password != null then
      { plain = u.password; }
    else if u.initialHashedPassword != null then
      { hashed = u.initialHashedPassword; }
    else if u.initialPassword != null then
      { plain = u.initialPassword; }
    else
      null;
in
{
  imports = [
    (lib.mkAliasOptionModule [ "users" "extraUsers" ] [ "users" "users" ])
    (lib.mkAliasOptionModule [ "users" "extraGroups" ] [ "users" "groups" ])
  ];

  options = {
    users = {
      mutableUsers = mkOption {
        type = types.bool;
        default = true;
        description = "Whether accounts made in the machine stay; passwords that exist are then not changed.";
      };
      enforceIdUniqueness = mkOption {
        type = types.bool;
        default = true;
        description = "Whether two accounts may not share an id.";
      };
      allowNoPasswordLogin = mkOption {
        type = types.bool;
        default = false;
        description = "Accepted; a machine is entered from its host.";
      };
      defaultUserShell = mkOption {
        type = types.either types.path types.package;
        default = "/run/current-system/sw/bin/bash";
        apply = utils.toShellPath;
        description = "Login shell of people.";
      };
      defaultUserHome = mkOption {
        type = types.str;
        default = "/home";
        description = "Where homes are.";
      };
      motd = mkOption {
        type = types.nullOr types.lines;
        default = null;
        description = "Shown at login.";
      };
      users = mkOption {
        type = types.attrsOf (types.submodule user);
        default = { };
        description = "Accounts by name.";
      };
      groups = mkOption {
        type = types.attrsOf (types.submodule group);
        default = { };
        description = "Groups by name.";
      };
    };
    ids = {
      uids = mkOption {
        type = types.attrsOf types.int;
        default = systemUsers // {
          root = 0;
          nobody = 65534;
        };
        internal = true;
        description = "Fixed user ids.";
      };
      gids = mkOption {
        type = types.attrsOf types.int;
        default = systemGroups;
        internal = true;
        description = "Fixed group ids.";
      };
    };
  };

  config = {
    users.users =
      lib.mapAttrs (name: uid: {
        inherit uid;
        group = lib.mkDefault name;
        isSystemUser = true;
      }) systemUsers
      // {
        root = {
          uid = 0;
          description = "System administrator";
          home = "/root";
          group = "root";
          shell = lib.mkDefault cfg.defaultUserShell;
          isSystemUser = true;
        };
        nobody = {
          uid = 65534;
          description = "Unprivileged account (don't use!)";
          group = "nogroup";
          isSystemUser = true;
        };
      };
    users.groups = lib.mapAttrs (_: gid: { inherit gid; }) systemGroups;

    assertions = lib.concatLists (
      lib.mapAttrsToList (name: u: [
        {
          assertion = u.group != "";
          message = "users.users.${name}.group is not set; a service's account needs `users.users.${name}.group = \"${name}\"' and `users.groups.${name} = { }'";
        }
        {
          assertion = u.group == "" || cfg.groups ? ${u.group};
          message = "users.users.${name}.group is `${u.group}', which is no group; define `users.groups.${u.group} = { }'";
        }
        {
          # An id of the system's range says as much as `isSystemUser`.
          assertion = lib.xor u.isNormalUser (u.isSystemUser || u.uid != null && u.uid < 1000);
          message = "exactly one of users.users.${name}.isNormalUser and users.users.${name}.isSystemUser must be set";
        }
      ]) people
    );

    system.build.userSpec = {
      mutable = cfg.mutableUsers;
      users = map (u: {
        inherit (u)
          name
          uid
          group
          description
          home
          homeMode
          createHome
          linger
          autoSubUidGidRange
          expires
          ;
        normal = u.isNormalUser;
        shell = if u.shell == null then nologin else utils.toShellPath u.shell;
        password = password u;
        subUid = map (r: [
          r.startUid
          r.count
        ]) u.subUidRanges;
        subGid = map (r: [
          r.startGid
          r.count
        ]) u.subGidRanges;
      }) (lib.attrValues people);
      groups = map (g: {
        inherit (g) name gid;
        members = lib.unique (
          g.members ++ map (u: u.name) (lib.filter (u: lib.elem g.name u.extraGroups) (lib.attrValues people))
        );
      }) (lib.attrValues cfg.groups);
    };

    environment.etc = lib.mkMerge [
      (lib.mapAttrs' (
        name: u:
        lib.nameValuePair "profiles/per-user/${u.name}" {
          source = pkgs.buildEnv {
            name = "user-environment";
            paths = u.packages;
            inherit (config.environment) pathsToLink;
          };
        }
      ) (lib.filterAttrs (_: u: u.packages != [ ]) people))
      (lib.mapAttrs' (
        name: u:
        lib.nameValuePair "ssh/authorized_keys.d/${u.name}" {
          mode = "0444";
          text = lib.concatLines (
            u.openssh.authorizedKeys.keys ++ map builtins.readFile u.openssh.authorizedKeys.keyFiles
          );
        }
      ) (lib.filterAttrs (_: u: u.openssh.authorizedKeys.keys != [ ] || u.openssh.authorizedKeys.keyFiles != [ ]) people))
      (lib.mkIf (cfg.motd != null) { motd.text = cfg.motd; })
    ];
    environment.shells = lib.mapAttrsToList (_: u: u.shell) (
      lib.filterAttrs (_: u: lib.isDerivation u.shell) people
    );
    environment.systemPackages = lib.mapAttrsToList (_: u: u.shell) (
      lib.filterAttrs (_: u: lib.isDerivation u.shell) people
    );
  };
}
