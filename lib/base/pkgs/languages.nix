# Sets of a language's packages, out of Debian's names for them.
final: prev:
let
  inherit (final) lib;
  prefixed =
    prefix: suffix:
    lib.listToAttrs (
      lib.concatMap (
        n:
        lib.optional (lib.hasPrefix prefix n && lib.hasSuffix suffix n) (
          lib.nameValuePair (lib.removeSuffix suffix (lib.removePrefix prefix n)) final.${n}
        )
      ) final.base.names
    );
  python3Packages = prefixed "python3-" "";
  perlPackages = prefixed "lib" "-perl";
  rubyPackages = prefixed "ruby-" "";
  withPackages =
    name: main: set: choose:
    final.buildEnv {
      inherit name;
      paths = [ main ] ++ choose set;
      meta.mainProgram = name;
    };
  extended =
    name: set:
    if prev ? ${name} then
      {
        ${name} = prev.${name} // {
          pkgs = set;
          withPackages = withPackages name prev.${name} set;
        };
      }
    else
      { };
in
{
  inherit python3Packages perlPackages rubyPackages;
}
// extended "python3" final.python3Packages
// extended "perl" final.perlPackages
// extended "ruby" final.rubyPackages
