# only: base
# A definition of an unknown option is handed to the caller's hook; one under a false condition is none.
{ lib, ... }:
let
  evaluate =
    hook: modules:
    lib.evalModules {
      modules = [ { options.known = lib.mkOption { default = 1; }; } ] ++ modules;
      _undefinedOption = hook;
    };
  person = {
    _file = "person.nix";
    services.foo.enable = true;
  };
  off = {
    services.bar = lib.mkIf false { enable = true; };
    other = lib.mkIf false 1;
  };
in
{
  lenient =
    (evaluate (_: null) [
      person
      off
    ]).config.known;
  seen =
    map (u: { inherit (u) path files; })
      (evaluate (_: null) [
        person
        off
      ])._undefined;
  refused = (builtins.tryEval (evaluate (_: "no") [ person ]).config.known).success;
  onlyOff = (evaluate (_: "no") [ off ]).config.known;
}
