{ codchi, ... }:
codchi.mkDriver {
  name = "x";
  kind = "vm";
  description = "a driver";
  suports = { };
}
