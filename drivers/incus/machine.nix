import ../../lib/instance-machine.nix (import ./default.nix)
