# What a machine needs to run as a virtual machine, beyond what every machine needs (modules/container.nix). `driver` is its record.
driver:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.codchi;

  # Debian's package names the one with the files, whose name has the version.
  debian =
    let
      names = pkgs.base.closure [ "linux-image-cloud-amd64" ];
      versioned = lib.filter (name: builtins.match "linux-image-[0-9].*" name != null) names;
    in
    pkgs.base.raw (lib.head versioned);

  # As QEMU's own network has it (rust/crates/codchi-drivers/src/vm/attendant.rs).
  network = pkgs.writeText "network" ''
    link set eth0 up
    addr add 192.168.231.15/24 dev eth0
    route add default via 192.168.231.2
  '';
in
{
  imports = [
    ../../modules/resources.nix
    ../../modules/vm.nix
  ];

  config = lib.mkIf (cfg.enable && cfg.driver.name == driver.name) {
    codchi.vm.kernel = lib.mkDefault (
      if pkgs ? base.raw then debian else pkgs.linuxPackages.kernel
    );

    systemd.services.codchi-network = import ../network-unit.nix {
      inherit pkgs;
      description = "Network of the virtual machine";
      script = ''
        # What is forwarded goes to the loopback, where development servers often listen; only QEMU is at the other end.
        echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
        exec ip -batch ${network}
      '';
    };
  };
}
