# Version numbers.
{ lib }:
{
  inherit (builtins) compareVersions splitVersion;
  major = v: builtins.elemAt (builtins.splitVersion v) 0;
  minor = v: builtins.elemAt (builtins.splitVersion v) 1;
  patch = v: builtins.elemAt (builtins.splitVersion v) 2;
  majorMinor = v: lib.concatStringsSep "." (lib.take 2 (builtins.splitVersion v));
  pad =
    n: version:
    let
      numeric = lib.head (builtins.match "([^-]*).*" version);
      suffix = lib.removePrefix numeric version;
      parts = builtins.splitVersion numeric;
    in
    lib.concatStringsSep "." (
      lib.take n (parts ++ lib.replicate (lib.max 0 (n - lib.length parts)) "0")
    )
    + suffix;
}
