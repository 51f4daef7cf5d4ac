# Options of units, under the names and with the meaning that NixOS gives them.
{ lib }:
let
  inherit (lib) mkOption types;
  inherit (import ../options.nix { inherit lib; }) lines strings yes;

  atom = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      types.package
    ]
  );
  value = types.either atom (types.listOf atom);

  section =
    description:
    mkOption {
      default = { };
      type = types.attrsOf value;
      description = "${description} Names are those of systemd; a list gives one line per element.";
    };
  number =
    description:
    mkOption {
      type = types.nullOr types.int;
      default = null;
      inherit description;
    };

  # What every kind of unit has.
  common = {
    enable = yes true "Whether the unit may run; false masks it.";
    overrideStrategy = mkOption {
      type = types.enum [
        "asDropinIfExists"
        "asDropin"
      ];
      default = "asDropinIfExists";
      description = "Whether this is a drop-in always, or only where a package has the unit.";
    };
    name = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Name of the unit with its suffix; none: the attribute's.";
    };
    description = mkOption {
      type = types.singleLineStr;
      default = "";
      description = "What the unit is.";
    };
    documentation = strings "Where it is documented.";
    aliases = strings "Further names.";
    unitConfig = section "The `[Unit]` section.";
    wantedBy = strings "Units that want it.";
    requiredBy = strings "Units that require it.";
    upheldBy = strings "Units that uphold it.";
    wants = strings "Units it wants.";
    requires = strings "Units it requires.";
    requisite = strings "Units that must run already.";
    upholds = strings "Units it upholds.";
    bindsTo = strings "Units it ends with.";
    partOf = strings "Units it stops and restarts with.";
    conflicts = strings "Units it excludes.";
    after = strings "Units it starts after.";
    before = strings "Units it starts before.";
    onFailure = strings "Units started when it fails.";
    onSuccess = strings "Units started when it ends well.";
    startLimitBurst = number "How many starts per interval.";
    startLimitIntervalSec = number "Length of that interval, in seconds.";
    restartTriggers = mkOption {
      type = types.listOf types.unspecified;
      default = [ ];
      description = "Values whose change restarts the unit on a switch.";
    };
    reloadTriggers = mkOption {
      type = types.listOf types.unspecified;
      default = [ ];
      description = "Values whose change reloads the unit on a switch.";
    };
  };

  service = {
    environment = mkOption {
      default = { };
      type = types.attrsOf (
        types.nullOr (
          types.oneOf [
            types.str
            types.int
            types.path
            types.package
          ]
        )
      );
      description = "Variables of the service.";
    };
    path = mkOption {
      default = [ ];
      type = types.listOf (
        types.oneOf [
          types.package
          types.str
        ]
      );
      description = "Packages on the service's search path.";
    };
    serviceConfig = section "The `[Service]` section.";
    confinement = mkOption {
      type = types.lazyAttrsOf types.anything;
      default = { };
      description = "Accepted; services of this base see the whole file system.";
    };
    enableStrictShellChecks = yes false "Accepted; scripts are not checked.";
    enableDefaultPath = yes true "Whether the usual tools are on the search path.";
    script = lines "Commands of the service's main process.";
    scriptArgs = mkOption {
      type = types.str;
      default = "";
      description = "Arguments of that script.";
    };
    preStart = lines "Commands before it.";
    postStart = lines "Commands once it runs.";
    reload = lines "Commands that reload it.";
    preStop = lines "Commands that stop it.";
    postStop = lines "Commands after it has ended.";
    jobScripts = mkOption {
      type = types.raw;
      default = [ ];
      internal = true;
      description = "Scripts of the service.";
    };
    restartIfChanged = yes true "Whether a switch that changes it restarts it.";
    reloadIfChanged = yes false "Whether a switch that changes it reloads it instead.";
    stopIfChanged = yes true "Whether it is stopped before the switch and started after it, rather than restarted.";
    notSocketActivated = yes false "Whether it is started although it has a socket.";
    startAt = mkOption {
      type = types.coercedTo types.str lib.singleton (types.listOf types.str);
      default = [ ];
      description = "When it runs, as a calendar event of systemd.time(7).";
    };
  };

  socket = {
    listenStreams = strings "Addresses it listens on.";
    listenDatagrams = strings "Datagram addresses it listens on.";
    socketConfig = section "The `[Socket]` section.";
  };
  mount = {
    what = mkOption {
      type = types.str;
      description = "What is mounted.";
    };
    where = mkOption {
      type = types.str;
      description = "Where.";
    };
    type = mkOption {
      type = types.str;
      default = "";
      description = "Type of file system.";
    };
    options = mkOption {
      type = types.commas;
      default = "";
      description = "Mount options.";
    };
    mountConfig = section "The `[Mount]` section.";
  };
  automount = {
    where = mkOption {
      type = types.str;
      description = "Where.";
    };
    automountConfig = section "The `[Automount]` section.";
  };
in
{
  inherit
    section
    strings
    lines
    value
    ;
  # By the name of the option: suffix of the unit, its own section, its own options.
  kinds = {
    services = {
      suffix = "service";
      section = "Service";
      config = u: u.serviceConfig;
      options = common // service;
    };
    sockets = {
      suffix = "socket";
      section = "Socket";
      config = u: u.socketConfig;
      options = common // socket;
    };
    timers = {
      suffix = "timer";
      section = "Timer";
      config = u: u.timerConfig;
      options = common // {
        timerConfig = section "The `[Timer]` section.";
      };
    };
    paths = {
      suffix = "path";
      section = "Path";
      config = u: u.pathConfig;
      options = common // {
        pathConfig = section "The `[Path]` section.";
      };
    };
    slices = {
      suffix = "slice";
      section = "Slice";
      config = u: u.sliceConfig;
      options = common // {
        sliceConfig = section "The `[Slice]` section.";
      };
    };
    targets = {
      suffix = "target";
      section = null;
      config = _: { };
      options = common;
    };
  };
  listed = {
    mounts = {
      suffix = "mount";
      section = "Mount";
      config =
        u:
        {
          What = u.what;
          Where = u.where;
        }
        // lib.optionalAttrs (u.type != "") { Type = u.type; }
        // lib.optionalAttrs (u.options != "") { Options = u.options; }
        // lib.mapAttrs (n: v: if n == "Options" && lib.isList v then lib.concatStringsSep "," v else v) u.mountConfig;
      options = common // mount;
    };
    automounts = {
      suffix = "automount";
      section = "Automount";
      config = u: { Where = u.where; } // u.automountConfig;
      options = common // automount;
    };
  };
  unit = {
    enable = common.enable;
    text = mkOption {
      type = types.nullOr types.lines;
      default = null;
      description = "The unit file.";
    };
    inherit (common)
      overrideStrategy
      aliases
      wantedBy
      requiredBy
      upheldBy
      ;
  };
}
