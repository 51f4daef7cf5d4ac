{ codchi, ... }:
codchi.mkDriver {
  name = "x";
  kind = "jail";
  description = "a driver";
}
