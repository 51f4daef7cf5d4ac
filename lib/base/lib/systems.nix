# Systems by their names: the attributes that packages and modules ask of a platform.
{ lib }:
let
  cpu = bits: family: arch: {
    _type = "cpu-type";
    inherit bits family;
    name = arch;
    significantByte = {
      _type = "significant-byte";
      name = if arch == "s390x" || arch == "powerpc64" then "bigEndian" else "littleEndian";
    };
  };
  cpus = {
    x86_64 = cpu 64 "x86" "x86_64";
    i686 = cpu 32 "x86" "i686";
    aarch64 = cpu 64 "arm" "aarch64";
    armv7l = cpu 32 "arm" "armv7l";
    armv6l = cpu 32 "arm" "armv6l";
    riscv64 = cpu 64 "riscv" "riscv64";
    powerpc64le = cpu 64 "power" "powerpc64le";
    powerpc64 = cpu 64 "power" "powerpc64";
    s390x = cpu 64 "s390" "s390x";
    loongarch64 = cpu 64 "loongarch" "loongarch64";
    mips64el = cpu 64 "mips" "mips64el";
  };

  parse =
    text:
    let
      parts = lib.splitString "-" text;
      arch = lib.head parts;
      kernel =
        if lib.any (lib.hasPrefix "darwin") parts then
          "darwin"
        else if lib.any (lib.hasPrefix "freebsd") parts then
          "freebsd"
        else if lib.any (lib.hasPrefix "linux") parts then
          "linux"
        else if lib.last parts == "windows" then
          "windows"
        else
          "none";
      abi =
        if lib.last parts == "musl" then
          "musl"
        else if kernel == "linux" then
          (if arch == "armv7l" || arch == "armv6l" then "gnueabihf" else "gnu")
        else
          "unknown";
    in
    {
      _type = "system";
      cpu = cpus.${arch} or (throw "Unknown CPU type: ${arch}");
      kernel = {
        _type = "kernel";
        name = kernel;
        families = { };
        execFormat = {
          _type = "exec-format";
          name = if kernel == "darwin" then "macho" else "elf";
        };
      };
      vendor = {
        _type = "vendor";
        name = if kernel == "darwin" then "apple" else "unknown";
      };
      abi = {
        _type = "abi";
        name = abi;
      };
    };

  elaborate =
    given:
    let
      args =
        if lib.isString given then
          { system = given; }
        else
          lib.optionalAttrs (given ? config && !(given ? system)) {
            system = doubleOf (parse given.config);
          }
          // removeAttrs given [ "parsed" ];
      doubleOf = p: "${p.cpu.name}-${p.kernel.name}";
      parsed = parse (args.config or args.system);
      name = parsed.cpu.name;
      is = family: parsed.cpu.family == family;
      linux = parsed.kernel.name == "linux";
      darwin = parsed.kernel.name == "darwin";
      freebsd = parsed.kernel.name == "freebsd";
      windows = parsed.kernel.name == "windows";
      musl = parsed.abi.name == "musl";
      self = {
        inherit parsed;
        system = doubleOf parsed;
        config =
          if darwin then
            "${name}-apple-darwin"
          else
            "${name}-unknown-${parsed.kernel.name}-${parsed.abi.name}";
        isLinux = linux;
        isDarwin = darwin;
        isMacOS = darwin;
        isiOS = false;
        isFreeBSD = freebsd;
        isOpenBSD = false;
        isNetBSD = false;
        isBSD = darwin || freebsd;
        isWindows = windows;
        isCygwin = false;
        isMinGW = windows;
        isUnix = linux || darwin || freebsd;
        isElf = !darwin && !windows;
        isMacho = darwin;
        isNone = parsed.kernel.name == "none";
        isWasi = false;
        isWasm = false;
        isGhcjs = false;
        isGenode = false;
        isRedox = false;
        isSunOS = false;
        isAndroid = false;
        useAndroidPrebuilt = false;
        useiOSPrebuilt = false;
        useLLVM = darwin || freebsd;
        isGnu = linux && !musl;
        isMusl = musl;
        isUClibc = false;
        isx86_64 = name == "x86_64";
        isx86_32 = name == "i686";
        isi686 = name == "i686";
        isx86 = is "x86";
        isAarch64 = name == "aarch64";
        isAarch32 = is "arm" && parsed.cpu.bits == 32;
        isAarch = is "arm";
        isArmv7 = name == "armv7l";
        isRiscV = is "riscv";
        isRiscV64 = name == "riscv64";
        isRiscV32 = false;
        isPower = is "power";
        isPower64 = is "power";
        isPowerPC = name == "powerpc";
        isS390 = is "s390";
        isS390x = name == "s390x";
        isLoongArch64 = name == "loongarch64";
        isMips = is "mips";
        isMips64 = is "mips";
        isSparc = false;
        isAvr = false;
        isMsp430 = false;
        isVc4 = false;
        isJavaScript = false;
        isM68k = false;
        isAlpha = false;
        is64bit = parsed.cpu.bits == 64;
        is32bit = parsed.cpu.bits == 32;
        isILP32 = false;
        isLittleEndian = parsed.cpu.significantByte.name == "littleEndian";
        isBigEndian = parsed.cpu.significantByte.name == "bigEndian";
        isStatic = false;
        hasSharedLibraries = !self.isStatic;
        isCompatible = other: lib.systems.equals self other;
        canExecute =
          other:
          other.parsed.kernel.name == parsed.kernel.name
          && (other.parsed.cpu.name == name || (name == "x86_64" && other.parsed.cpu.name == "i686"));
        emulatorAvailable = _: false;
        emulator = _: throw "this base has no emulators for `${self.system}'";
        libc =
          if darwin then
            "libSystem"
          else if musl then
            "musl"
          else if linux then
            "glibc"
          else
            "unknown";
        linker = if darwin then "cctools" else "bfd";
        extensions = {
          sharedLibrary =
            if darwin then
              ".dylib"
            else if windows then
              ".dll"
            else
              ".so";
          staticLibrary = if windows then ".lib" else ".a";
          executable = if windows then ".exe" else "";
          library = self.extensions.sharedLibrary;
        };
        uname = {
          system =
            if darwin then
              "Darwin"
            else if linux then
              "Linux"
            else
              parsed.kernel.name;
          processor = name;
          release = null;
        };
        linuxArch =
          if is "arm" then
            (if parsed.cpu.bits == 64 then "arm64" else "arm")
          else if is "riscv" then
            "riscv"
          else if is "power" then
            "powerpc"
          else if is "s390" then
            "s390"
          else if name == "i686" then
            "i386"
          else if is "loongarch" then
            "loongarch"
          else if is "mips" then
            "mips"
          else
            "x86_64";
        linux-kernel = {
          name = "pc";
          baseConfig = "defconfig";
          target = if is "arm" then "Image" else "bzImage";
          DTB = is "arm";
        };
        qemuArch =
          if self.isAarch32 then
            "arm"
          else if self.isx86_32 then
            "i386"
          else
            name;
        efiArch =
          {
            x86_64 = "x64";
            i686 = "ia32";
            aarch64 = "aa64";
          }
          .${name} or name;
        darwinArch = if name == "aarch64" then "arm64" else name;
        ubootArch = if name == "aarch64" then "arm64" else name;
        gcc = { };
        rustc = { };
        rust = {
          platform = {
            arch = if name == "i686" then "x86" else name;
            os = if darwin then "macos" else parsed.kernel.name;
          };
          rustcTarget = "${name}-unknown-linux-${if musl then "musl" else "gnu"}";
          rustcTargetSpec = self.rust.rustcTarget;
          cargoShortTarget = self.rust.rustcTarget;
          cargoEnvVarTarget = lib.replaceStrings [ "-" ] [ "_" ] (lib.toUpper self.rust.rustcTarget);
          isNoStdTarget = false;
        };
        go = {
          GOARCH =
            {
              x86_64 = "amd64";
              i686 = "386";
              aarch64 = "arm64";
              armv7l = "arm";
              armv6l = "arm";
              powerpc64le = "ppc64le";
              loongarch64 = "loong64";
            }
            .${name} or name;
          GOOS = parsed.kernel.name;
          GOARM = null;
        };
        node = {
          arch =
            {
              x86_64 = "x64";
              i686 = "ia32";
              aarch64 = "arm64";
              armv7l = "arm";
            }
            .${name} or name;
          platform = parsed.kernel.name;
        };
      };
      full =
        self
        // removeAttrs args [
          "system"
          "config"
        ];
    in
    full;

  doubles = {
    linux = [
      "aarch64-linux"
      "armv6l-linux"
      "armv7l-linux"
      "i686-linux"
      "loongarch64-linux"
      "mips64el-linux"
      "powerpc64-linux"
      "powerpc64le-linux"
      "riscv64-linux"
      "s390x-linux"
      "x86_64-linux"
    ];
    darwin = [
      "aarch64-darwin"
      "x86_64-darwin"
    ];
    freebsd = [
      "x86_64-freebsd"
      "aarch64-freebsd"
    ];
    windows = [
      "x86_64-windows"
      "i686-windows"
    ];
    none = [ ];
    x86_64 = [
      "x86_64-linux"
      "x86_64-darwin"
      "x86_64-freebsd"
      "x86_64-windows"
    ];
    aarch64 = [
      "aarch64-linux"
      "aarch64-darwin"
      "aarch64-freebsd"
    ];
    x86 = doubles.x86_64 ++ doubles.i686;
    i686 = [
      "i686-linux"
      "i686-windows"
    ];
    arm = [
      "armv6l-linux"
      "armv7l-linux"
    ];
    riscv = [ "riscv64-linux" ];
    riscv64 = [ "riscv64-linux" ];
    power = [
      "powerpc64-linux"
      "powerpc64le-linux"
    ];
    s390x = [ "s390x-linux" ];
    gnu = doubles.linux;
    unix = doubles.linux ++ doubles.darwin ++ doubles.freebsd;
    all = doubles.unix ++ doubles.windows;
  };
in
{
  inherit elaborate doubles;
  equals = a: b: a.system or a == b.system or b;
  toLosslessStringMaybe = x: if lib.isString x then x else x.system or null;
  parse = {
    mkSystemFromString = parse;
    doubleFromSystem = p: "${p.cpu.name}-${p.kernel.name}";
    tripleFromSystem = p: "${p.cpu.name}-${p.vendor.name}-${p.kernel.name}-${p.abi.name}";
  };
  flakeExposed = [
    "x86_64-linux"
    "aarch64-linux"
    "x86_64-darwin"
    "armv6l-linux"
    "armv7l-linux"
    "i686-linux"
    "aarch64-darwin"
    "powerpc64le-linux"
    "riscv64-linux"
    "x86_64-freebsd"
  ];
  supported.hydra = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  examples = {
    gnu64 = {
      config = "x86_64-unknown-linux-gnu";
    };
    gnu32 = {
      config = "i686-unknown-linux-gnu";
    };
    musl64 = {
      config = "x86_64-unknown-linux-musl";
    };
    aarch64-multiplatform = {
      config = "aarch64-unknown-linux-gnu";
    };
    riscv64 = {
      config = "riscv64-unknown-linux-gnu";
    };
  };
  inspect.predicates = lib.mapAttrs (
    name: _: s:
    (elaborate "${s.cpu.name}-${s.kernel.name}").${name}
  ) (lib.filterAttrs (name: _: lib.hasPrefix "is" name) (elaborate "x86_64-linux"));
}
