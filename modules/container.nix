# What a machine needs so that systemd gets to `running` with everything about the host left to the runtime: in a user namespace,
# or in a virtual machine, which gets its kernel from its driver and has no hardware that anything in it would look after.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  # Stronger than the defaults of a base's own modules, weaker than anything a person writes.
  prefer = lib.mkOverride 900;
  # For options that only one of the bases has.
  whereDeclared =
    path: value: lib.optionalAttrs (lib.hasAttrByPath path options) (lib.setAttrByPath path value);
in
{
  imports = [
    ./driver.nix
    ./enable.nix
  ];

  config = lib.mkIf (cfg.enable && driver.attended) (
    lib.mkMerge [
      {
        boot.isContainer = true;

        # Host name, address, route and resolver belong to a host, so the runtime sets them.
        networking = {
          hostName = lib.mkDefault "";
          useDHCP = prefer false;
          dhcpcd.enable = prefer false;
          useHostResolvConf = prefer false;
          resolvconf.enable = prefer false;
          # Only ports that were asked for are forwarded into the machine's own network.
          firewall.enable = prefer false;
        };
        environment.etc."resolv.conf".source = prefer "/run/codchi/host/resolv.conf";

        # The console is a log, not a terminal.
        systemd.services.console-getty.enable = prefer false;

        # First, so that a person's own lines win.
        services.journald.extraConfig = lib.mkBefore ''
          SystemMaxUse=256M
          RuntimeMaxUse=32M
        '';

        environment.defaultPackages = prefer [ ];
      }
      # The runtime has mounted these, and a machine may not remount them.
      (lib.mkIf (driver.kind == "container") (
        whereDeclared [ "boot" "specialFileSystems" ] (lib.mkForce { })
      ))
      (whereDeclared [ "services" "logrotate" "enable" ] (prefer false))
      (whereDeclared [ "programs" "command-not-found" "enable" ] (prefer false))
      (whereDeclared [ "systemd" "oomd" "enable" ] (prefer false))
    ]
  );
}
