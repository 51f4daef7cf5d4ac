# Unit files out of options.
{
  lib,
  pkgs,
  defaultPath,
}:
let
  show =
    v:
    if v == true then
      "true"
    else if v == false then
      "false"
    else
      toString v;

  assignments = lib.mapAttrsToList (
    k: v:
    if v == null then
      ""
    else if lib.isList v then
      lib.concatMapStrings (x: "${k}=${show x}\n") v
    else
      "${k}=${show v}\n"
  );
  section = attrs: lib.concatStrings (assignments attrs);

  words = key: list: lib.optionalAttrs (list != [ ]) { ${key} = lib.concatStringsSep " " (map toString list); };

  unitSection =
    u:
    lib.optionalAttrs (u.description != "") { Description = u.description; }
    // words "Documentation" u.documentation
    // words "Wants" u.wants
    // words "Requires" u.requires
    // words "Requisite" u.requisite
    // words "Upholds" u.upholds
    // words "BindsTo" u.bindsTo
    // words "PartOf" u.partOf
    // words "Conflicts" u.conflicts
    // words "After" u.after
    // words "Before" u.before
    // words "OnFailure" u.onFailure
    // words "OnSuccess" u.onSuccess
    // lib.optionalAttrs (u.startLimitBurst != null) { StartLimitBurst = u.startLimitBurst; }
    // lib.optionalAttrs (u.startLimitIntervalSec != null) { StartLimitIntervalSec = u.startLimitIntervalSec; }
    // words "X-Restart-Triggers" u.restartTriggers
    // words "X-Reload-Triggers" u.reloadTriggers
    // u.unitConfig;

  script =
    name: what: text:
    pkgs.writeShellScript "unit-script-${lib.strings.sanitizeDerivationName name}-${what}" "set -e\n${text}";

  # Commands given as scripts come before those given as lines.
  command =
    name: u: what: text: key: config:
    lib.optionalAttrs (text != "") {
      ${key} =
        [ "${script name what text}${lib.optionalString (what == "start" && u.scriptArgs != "") " ${u.scriptArgs}"}" ]
        ++ lib.toList (config.${key} or [ ]);
    };

  serviceSection =
    name: u:
    let
      c = u.serviceConfig;
    in
    c
    // command name u "start" u.script "ExecStart" c
    // command name u "pre-start" u.preStart "ExecStartPre" c
    // command name u "post-start" u.postStart "ExecStartPost" c
    // command name u "reload" u.reload "ExecReload" c
    // command name u "pre-stop" u.preStop "ExecStop" c
    // command name u "post-stop" u.postStop "ExecStopPost" c
    // lib.optionalAttrs u.reloadIfChanged { X-ReloadIfChanged = true; }
    // lib.optionalAttrs (!u.restartIfChanged) { X-RestartIfChanged = false; }
    // lib.optionalAttrs (!u.stopIfChanged) { X-StopIfChanged = false; }
    // lib.optionalAttrs u.notSocketActivated { X-NotSocketActivated = true; };

  # systemd expands % in values.
  variables =
    env:
    lib.concatStrings (
      lib.mapAttrsToList (
        n: v: lib.optionalString (v != null) "Environment=${builtins.replaceStrings [ "%" ] [ "%%" ] (builtins.toJSON "${n}=${toString v}")}\n"
      ) env
    );

  searchPath =
    u:
    lib.concatStringsSep ":" (
      map (p: "${p}/bin") (u.path ++ lib.optionals u.enableDefaultPath defaultPath)
      ++ map (p: "${p}/sbin") (lib.filter (p: !(p ? debNames)) u.path)
      ++ [ "/usr/bin" ]
    );
in
{
  inherit section;

  # kind name options globalEnvironment -> the text of the unit
  unit =
    kind: name: u: globalEnvironment:
    let
      own = if kind.suffix == "service" then serviceSection name u else kind.config u;
      environment =
        globalEnvironment
        // lib.optionalAttrs (u.environment.PATH or null == null) { PATH = searchPath u; }
        // u.environment;
    in
    "[Unit]\n"
    + section (unitSection u)
    + lib.optionalString (kind.section != null) (
      "\n[${kind.section}]\n"
      + lib.optionalString (kind.suffix == "service") (variables environment)
      + lib.concatMapStrings (s: "ListenStream=${s}\n") (u.listenStreams or [ ])
      + lib.concatMapStrings (s: "ListenDatagram=${s}\n") (u.listenDatagrams or [ ])
      + section own
    );
}
