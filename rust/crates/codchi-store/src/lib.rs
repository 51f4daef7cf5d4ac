//! Where /nix is: the host's store or an own one, and the endpoint of each machine.
