import ../../lib/instance.nix {
  guestApi = "security.devlxd";
  shift = false;
}
