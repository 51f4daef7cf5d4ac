# Display, sound and ssh agent of the host: sockets below /run/codchi/host that lead to whoever called last, where that was granted.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  asked = cfg.requiredCapabilities ++ cfg.optionalCapabilities;
  has = name: lib.elem name asked && lib.elem name (driver.supports.capabilities or [ ]);
  # By capability: socket, variable and its value. Commands of the host get them from the agent
  # (rust/crates/codchi-core/src/session.rs).
  variables =
    lib.optionals (has "display") [
      {
        socket = "x11";
        name = "DISPLAY";
        value = ":0";
      }
      {
        socket = "wayland";
        name = "WAYLAND_DISPLAY";
        value = "/run/codchi/host/wayland";
      }
    ]
    ++ lib.optionals (has "sound") [
      {
        socket = "pipewire";
        name = "PIPEWIRE_REMOTE";
        value = "/run/codchi/host/pipewire";
      }
      {
        socket = "pulse";
        name = "PULSE_SERVER";
        value = "unix:/run/codchi/host/pulse";
      }
    ]
    ++ lib.optional (has "ssh-agent") {
      socket = "ssh-agent";
      name = "SSH_AUTH_SOCK";
      value = "/run/codchi/host/ssh-agent";
    };
in
{
  imports = [
    ./capabilities.nix
    ./driver.nix
    ./enable.nix
  ];

  config = lib.mkIf cfg.enable {
    # For log-ins by other ways than the host's. Not in what is kept of a log-in: the sockets come and go.
    environment.extraInit = lib.mkIf (variables != [ ]) ''
      if [ -z "''${__CODCHI_WITHOUT_SECRETS-}" ]; then
      ${lib.concatMapStrings (v: ''
        if [ -w /run/codchi/host/${v.socket} ] && [ -z "''${${v.name}-}" ]; then export ${v.name}=${v.value}; fi
      '') variables}
      fi
    '';
    systemd.tmpfiles.rules = lib.mkIf (has "display") [
      "d /tmp/.X11-unix 1777 root root -"
      "L+ /tmp/.X11-unix/X0 - - - - /run/codchi/host/x11"
    ];
  };
}
