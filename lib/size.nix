# Sizes as people write them.
{ lib }:
let
  units = {
    "" = 1;
    K = 1024;
    M = 1024 * 1024;
    G = 1024 * 1024 * 1024;
    T = 1024 * 1024 * 1024 * 1024;
  };
  pattern = "([1-9][0-9]*)([KMGT]?)";
in
{
  /*
    Bytes of a size.

    Takes bytes as an integer, or a string of a whole number and one of K, M, G, T (powers of 1024).

    Example: toBytes "4G" => 4294967296
  */
  toBytes =
    size:
    if builtins.isInt size then
      size
    else
      let
        parts = builtins.match pattern size;
      in
      if parts == null then
        throw "codchi: `${size}` is not a size: write bytes, or a whole number with K, M, G or T, such as `4G`"
      else
        builtins.fromJSON (builtins.elemAt parts 0) * units.${builtins.elemAt parts 1};

  # The option type of a size.
  type = lib.types.either lib.types.ints.positive (lib.types.strMatching pattern) // {
    description = "size";
  };
}
