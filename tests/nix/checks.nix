# The flake's checks. The evaluation checks are cheap; the others build and boot real systems.
{
  self,
  nixpkgs,
  pkgs,
}:
let
  inherit (pkgs) lib;
  inherit (pkgs.stdenv.hostPlatform) system;

  # A check that passes when it evaluates.
  ok = name: pkgs.runCommandLocal name { } "touch $out";
  holds =
    name: condition: message:
    if condition then ok name else throw "check ${name}: ${message}";

  machine =
    modules:
    (self.lib.codeMachine {
      inputs = { inherit nixpkgs; };
      inherit system modules;
      stateVersion = "26.05";
    }).nixosConfigurations.native;

  # Pairs of tests/nix/cases; those that must fail need `nix eval` and stay with tests/nix/run.
  caseFiles = lib.filter (
    name:
    lib.hasSuffix ".json" name
    && !(lib.hasInfix "# only: base" (
      builtins.readFile (./cases + "/${lib.removeSuffix ".json" name}.nix")
    ))
  ) (lib.attrNames (builtins.readDir ./cases));
  case =
    file:
    let
      name = lib.removeSuffix ".json" file;
      got = import ./eval.nix {
        inherit nixpkgs;
        case = ./cases + "/${name}.nix";
      };
      want = lib.importJSON (./cases + "/${file}");
    in
    lib.nameValuePair "case-${name}" (
      # Through JSON, which is what `nix eval --json` compares.
      holds "case-${name}" (
        builtins.fromJSON (builtins.toJSON got) == want
      ) "tests/nix/cases/${file} is not what evaluation gives: ${builtins.toJSON got}"
    );

  templates = lib.mapAttrs' (
    name: template:
    lib.nameValuePair "template-${name}" (
      # The instantiated system is named, not built.
      holds "template-${name}" (lib.hasSuffix ".drv"
        (machine [ (template.path + "/machine.nix") ]).config.system.build.toplevel.drvPath
      ) "does not evaluate"
    )
  ) (lib.removeAttrs self.templates [ "default" ]);

  reference =
    pkgs.runCommandLocal "options-reference"
      {
        # With Codchi's own lib, since the names of types differ between libraries.
        rendered =
          pkgs.writeText "options.md"
            (import ../../lib { lib = import ../../lib/base/lib; }).optionsReference.page;
        committed = ../../docs/reference/options.md;
      }
      ''
        diff -u "$committed" "$rendered" || {
          echo "docs/reference/options.md is stale: run tests/nix/options-reference --write" >&2
          exit 1
        }
        touch $out
      '';
in
# The expected files are of this system.
lib.optionalAttrs (system == "x86_64-linux") (lib.listToAttrs (map case caseFiles))
// templates
// {
  inherit (self.packages.${system}) codchi;
  options-reference = reference;

  version = holds "version" (
    (lib.importTOML ../../rust/Cargo.toml).workspace.package.version == self.lib.version
  ) "lib/version.nix and rust/Cargo.toml differ";

  # The hello template as a container under a real systemd, without a host behind it but for its mounts.
  container = import ./container.nix { inherit machine pkgs; };
  # Driver `none`: a plain NixOS VM with the user, secrets and init script.
  plain-vm = import ./plain-vm.nix { inherit self pkgs; };
}
