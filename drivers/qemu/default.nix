# Virtual machines of a QEMU that Codchi starts itself: no daemon, no disk image.
import ../../lib/vm/record.nix {
  name = "qemu";
  description = "a virtual machine of QEMU, without a daemon";
  requires = [
    "qemu"
    "virtiofsd"
  ];
}
