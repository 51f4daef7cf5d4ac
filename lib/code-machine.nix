# From modules to NixOS configurations, one for every driver that can run a machine.
let
  drivers = import ./drivers.nix;
  runnable = builtins.filter (driver: driver.runnable) (builtins.attrValues drivers);

  # A base that is not nixpkgs says so in its flake: `codchiBase.<system> = { name; label; }`.
  baseOf =
    nixpkgs: system:
    if nixpkgs ? codchiBase then
      nixpkgs.codchiBase.${system}
        or (throw "codchi: this copy of the built-in base has no package index for ${system}")
    else
      {
        name = "nixpkgs";
        label = "NixOS ${nixpkgs.lib.trivial.release}";
      };
in
/*
  codeMachine evaluates a machine for each driver it could run on.

  Takes the machine flake's `inputs` (its `nixpkgs` gives packages and options), `modules`, `system`,
  `stateVersion` (the release at the machine's creation) and, if wanted, `specialArgs`. Gives
  `{ nixosConfigurations.<driver>; }`, and beside the record of an export `nixosConfigurations.nixos`: the system
  without a driver, with the machine's name, `hardware-configuration.nix` and `configuration.nix` where they are. It never passes `pkgs`, so `nixpkgs.config` and overlays work as in any
  NixOS configuration.

  Example:
    codeMachine {
      inherit inputs;
      system = "x86_64-linux";
      stateVersion = "26.05";
      modules = [ inputs.my-project.nixosModules.default ];
    }
*/
{
  inputs,
  modules ? [ ],
  system,
  stateVersion,
  specialArgs ? { },
}:
let
  nixpkgs =
    inputs.nixpkgs or (throw ''
      codchi: the machine flake has no input `nixpkgs`
      add `inputs.nixpkgs.follows = "codchi/nixpkgs";`'');

  machine =
    driver:
    { lib, ... }:
    {
      _file = "codchi.lib.codeMachine";
      codchi = {
        enable = true;
        driver.name = driver.name;
        build = {
          base = baseOf nixpkgs system;
          nixpkgs = nixpkgs.outPath;
        };
      };
      nixpkgs.hostPlatform = lib.mkDefault system;
      # The machine's own release wins over one a module brings along: its data was created with it. mkForce still wins.
      system.stateVersion = lib.mkOverride 75 stateVersion;
    };
  configuration =
    driver: more:
    nixpkgs.lib.nixosSystem {
      inherit specialArgs;
      modules = [
        ../modules
        (machine driver)
      ]
      ++ modules
      ++ more;
    };

  # Beside the flake of an export lies a record, and on a NixOS of its own what a person adds for the hardware.
  beside =
    name:
    let
      file = "${inputs.self}/${name}";
    in
    if inputs ? self && builtins.pathExists file then [ file ] else [ ];
  record = builtins.concatMap (file: [ (builtins.fromJSON (builtins.readFile file)) ]) (
    beside "codchi.json"
  );
  plain =
    { lib, ... }:
    {
      networking.hostName = lib.mkOverride 900 (builtins.head record).name;
      # What it did is among the files.
      codchi.build.initialised = !((builtins.head record).initScriptPending or false);
    };
in
{
  nixosConfigurations =
    builtins.listToAttrs (
      map (driver: {
        inherit (driver) name;
        value = configuration driver [ ];
      }) runnable
    )
    // (
      if record == [ ] then
        { }
      else
        {
          nixos = configuration drivers.none (
            [ plain ] ++ beside "hardware-configuration.nix" ++ beside "configuration.nix"
          );
        }
    );
}
