# What modules ask of nixpkgs about the platform. Nothing is compiled here: `mkDerivation` says so.
final: _:
let
  inherit (final) lib system;
  cpu = builtins.head (lib.splitString "-" system);
  platform = {
    inherit system;
    config = "${cpu}-unknown-linux-gnu";
    isLinux = true;
    isDarwin = false;
    isUnix = true;
    isBSD = false;
    isGnu = true;
    isMusl = false;
    isStatic = false;
    is64bit = true;
    is32bit = false;
    isx86 = cpu == "x86_64";
    isx86_64 = cpu == "x86_64";
    isx86_32 = false;
    isAarch = cpu == "aarch64";
    isAarch64 = cpu == "aarch64";
    isAarch32 = false;
    isRiscV = false;
    isRiscV64 = false;
    isPower = false;
    isLittleEndian = true;
    linuxArch = if cpu == "aarch64" then "arm64" else cpu;
    parsed = {
      cpu.name = cpu;
      kernel.name = "linux";
      abi.name = "gnu";
    };
    extensions = {
      sharedLibrary = ".so";
      executable = "";
    };
    canExecute = other: other.system or null == system;
    emulator = _: "";
    gnu-config = "${cpu}-unknown-linux-gnu";
    __toString = p: p.config;
  };
  stdenv = {
    inherit system;
    shell = final.runtimeShell;
    cc = final.gcc or null;
    hostPlatform = platform;
    buildPlatform = platform;
    targetPlatform = platform;
    isLinux = true;
    isDarwin = false;
    is64bit = true;
    inherit (platform) isx86_64 isAarch64;
    mkDerivation =
      args:
      let
        name = if lib.isAttrs args then args.name or args.pname or "?" else "?";
      in
      throw "the debian base builds nothing from source: `${name}' calls stdenv.mkDerivation; use the base `nixpkgs' for this module";
  };
in
{
  inherit stdenv;
  stdenvNoCC = stdenv;
  hostPlatform = platform;
  buildPlatform = platform;
  targetPlatform = platform;
  recurseIntoAttrs = attrs: attrs // { recurseForDerivations = true; };
  dontRecurseIntoAttrs = attrs: attrs // { recurseForDerivations = false; };
  callPackage = lib.callPackageWith final;
  callPackages = lib.callPackagesWith final;
  newScope = extra: lib.callPackageWith (final // extra);
  nixosModules = { };
}
