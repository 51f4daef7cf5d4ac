import ../../lib/instance.nix {
  guestApi = "security.guestapi";
  shift = true;
}
