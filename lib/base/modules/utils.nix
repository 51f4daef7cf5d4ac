# The functions NixOS hands to modules as `utils`.
{ lib }:
let
  inherit (lib) isDerivation;
in
{
  # A shell that is a package is meant by the path it has in a machine.
  toShellPath = s: if isDerivation s then "/run/current-system/sw${s.shellPath or "/bin/${s.meta.mainProgram or s.pname}"}" else s;

  # /var/lib/my-thing -> var-lib-my\x2dthing
  escapeSystemdPath =
    s:
    builtins.replaceStrings [ "-" " " "/" ] [ "\\x2d" "\\x20" "-" ] (
      lib.removeSuffix "/" (lib.removePrefix "/" (toString s))
    );

  escapeSystemdExecArg = arg: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString arg));
  escapeSystemdExecArgs = lib.concatMapStringsSep " " (
    arg: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString arg))
  );

  removePackagesByName =
    packages: names:
    let
      drop = map lib.getName names;
    in
    lib.filter (p: !(lib.elem (lib.getName p) drop)) packages;

  systemdUtils = { };
}
