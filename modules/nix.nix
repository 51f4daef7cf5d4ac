# Nix inside a machine is a client of the host's store.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  # Stronger than the defaults of a base's own modules, weaker than anything a person writes.
  prefer = lib.mkOverride 900;
  shared = cfg.isolation.store == "shared";
in
{
  imports = [
    ./build.nix
    ./driver.nix
    ./enable.nix
    ./isolation.nix
    ./kvm.nix
  ];

  config = lib.mkIf (cfg.enable && driver.attended) (
    lib.mkMerge [
      (lib.mkIf (!shared) {
        nix.enable = prefer false;
      })
      (lib.mkIf shared {
        nix.settings = {
          store = prefer "daemon";
          # What tests and builds that ask for hardware find here.
          system-features = prefer (
            [
              "benchmark"
              "big-parallel"
              "nixos-test"
            ]
            ++ lib.optional (cfg.kvm.enable || lib.elem "kvm" cfg.requiredCapabilities) "kvm"
          );
          experimental-features = [
            "nix-command"
            "flakes"
          ];
        };
        nix.channel.enable = lib.mkDefault false;

        # The daemon is the host's; its socket arrives by a mount.
        systemd.services.nix-daemon.enable = false;
        systemd.sockets.nix-daemon.enable = false;
        # The socket's folder is read-only and not ours: this line comes before the one Nix brings and wins over it.
        systemd.tmpfiles.rules = [ "d /nix/var/nix/daemon-socket :0755 :root :root - -" ];
      })
      (lib.mkIf (shared && cfg.build.nixpkgs != null) {
        nix.registry.nixpkgs.to = prefer {
          type = "path";
          path = cfg.build.nixpkgs;
        };
        # By a link that follows the running system, so that log-ins from before a rebuild see the new one.
        environment.etc."nix/nixpkgs".source = cfg.build.nixpkgs;
        nix.nixPath = prefer [ "nixpkgs=/etc/nix/nixpkgs" ];
      })
    ]
  );
}
