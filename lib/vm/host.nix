# Renders what a driver with virtual machines needs to know: the kernel, and how large the machine is.
{
  config,
  driver,
  lib,
}:
let
  cfg = config.codchi;
  kernel = cfg.vm.kernel;
  orElse = default: value: if value == null then default else value;
in
{
  version = 1;
  kernel = "${kernel}";
  modules = "${kernel.modules or kernel}";
  # What a machine needs before it sees its files, and what nothing in it loads, in this order; a kernel has most of it built in.
  load = [
    "virtio"
    "virtio_ring"
    "virtio_pci_modern_dev"
    "virtio_pci_legacy_dev"
    "virtio_pci"
    "fuse"
    "virtiofs"
    "overlay"
    "virtio_console"
    "failover"
    "net_failover"
    "virtio_net"
    "rng_core"
    "virtio_rng"
  ];
  memory = orElse (2 * 1024 * 1024 * 1024) cfg.resources.memory;
  cpus = builtins.ceil (orElse 2 cfg.resources.cpus);
}
