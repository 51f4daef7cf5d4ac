# Virtual machines of a QEMU that libvirt starts: its tools show them.
import ../../lib/vm/record.nix {
  name = "libvirt";
  description = "a virtual machine that libvirt starts";
  requires = [
    "libvirt"
    "virtiofsd"
  ];
}
