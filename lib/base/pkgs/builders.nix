# Functions of nixpkgs that make files, scripts and trees of links. Files are written by the base's static builder; only
# what the caller writes as a script runs in a shell, with static tools.
final: prev:
let
  inherit (final) lib system;
  inherit (prev.base) build;

  # A derivation of the builder: structured attributes are its request.
  action =
    name: verb: attrs:
    derivation (
      {
        inherit name system;
        builder = build;
        args = [ verb ];
        __structuredAttrs = true;
        preferLocalBuild = true;
      }
      // attrs
    );

  # What makes a derivation of ours look like one of nixpkgs.
  dress =
    {
      name,
      meta ? { },
      passthru ? { },
    }:
    drv:
    let
      self =
        drv
        // {
          pname = name;
          inherit meta passthru;
          override = _: self;
          overrideAttrs = _: self;
        }
        // passthru;
    in
    self;

  static = {
    bash = "${final.base.raw "bash-static"}/usr/bin/bash-static";
    busybox = "${final.base.raw "busybox-static"}/usr/bin/busybox";
  };
  tools = action "static-tools" "tools" static;
  toolPath = "${tools}/bin";

  prelude = ''
    export PATH=${toolPath} HOME=/homeless-shelter SHELL=${static.bash}
    for input in ''${nativeBuildInputs:-} ''${buildInputs:-}; do
      PATH=$input/bin:$PATH
      if [ -f "$input/nix-support/setup-hook" ]; then . "$input/nix-support/setup-hook"; fi
    done
    set -e
  '';

  # What `nix-shell` and `nix develop` read of an environment: the programs of its inputs come first.
  shellSetup = writeTree "shell-setup" {
    setup.text = ''
      if [ "''${PATH-}" = /path-not-set ]; then PATH=; fi
      for input in ''${buildInputs-} ''${nativeBuildInputs-}; do
        PATH=$input/bin''${PATH:+:$PATH}
        if [ -f "$input/nix-support/setup-hook" ]; then . "$input/nix-support/setup-hook"; fi
      done
      export PATH
    '';
  };

  # An environment to be entered. Its programs run where the machine has their packages.
  mkShell =
    {
      name ? "nix-shell",
      packages ? [ ],
      nativeBuildInputs ? [ ],
      buildInputs ? [ ],
      inputsFrom ? [ ],
      shellHook ? "",
      ...
    }@attrs:
    let
      inputs = what: lib.concatMap (d: d.${what} or [ ]) inputsFrom;
      given = {
        nativeBuildInputs = packages ++ nativeBuildInputs ++ inputs "nativeBuildInputs";
        buildInputs = buildInputs ++ inputs "buildInputs";
        shellHook = lib.concatStringsSep "\n" (
          lib.filter (h: h != "") (map (d: d.shellHook or "") inputsFrom ++ [ shellHook ])
        );
      };
    in
    dress
      {
        inherit name;
        passthru = given;
      }
      (
        derivation (
          {
            inherit name system;
            # Only what is called `bash` can be entered.
            builder = "${toolPath}/bash";
            args = [
              "-c"
              "declare -px > $out"
            ];
            stdenv = shellSetup;
            # Said, because who enters it asks for it.
            outputs = [ "out" ];
            preferLocalBuild = true;
          }
          // removeAttrs attrs [
            "name"
            "packages"
            "inputsFrom"
            "meta"
            "passthru"
          ]
          // given
        )
      );

  # { path = { text, executable? } | { source }; }: a folder, or with the path "" a single file.
  writeTree =
    name: files:
    action (lib.strings.sanitizeDerivationName name) "tree" {
      files = lib.mapAttrs (
        _: f: if f ? text then { inherit (f) text; executable = f.executable or false; } else { source = "${f.source}"; }
      ) files;
    };

  runCommandWith =
    {
      name,
      derivationArgs ? { },
      stdenv ? null,
      runLocal ? true,
    }:
    script:
    dress
      {
        inherit name;
        meta = derivationArgs.meta or { };
        passthru = derivationArgs.passthru or { };
      }
      (
        derivation (
          {
            inherit name system;
            builder = "${toolPath}/bash";
            args = [
              "-c"
              ''
                if [ -e "''${NIX_ATTRS_SH_FILE:-.attrs.sh}" ]; then . "''${NIX_ATTRS_SH_FILE:-.attrs.sh}"; for o in "''${!outputs[@]}"; do eval "$o=\''${outputs[$o]}"; export "$o"; done; fi
                ${prelude}
                if [ -n "''${buildCommandPath:-}" ]; then . "$buildCommandPath"; else eval "$buildCommand"; fi
                :
              ''
            ];
            buildCommand = script;
            stdenv = shellSetup;
            preferLocalBuild = runLocal;
          }
          // lib.optionalAttrs (!(derivationArgs.__structuredAttrs or false)) {
            passAsFile = [ "buildCommand" ] ++ derivationArgs.passAsFile or [ ];
          }
          // removeAttrs derivationArgs [
            "passAsFile"
            "meta"
            "passthru"
          ]
        )
      );
  runCommand =
    name: env: script:
    runCommandWith {
      inherit name;
      derivationArgs = env;
    } script;

  writeTextFile =
    {
      name,
      text,
      executable ? false,
      destination ? "",
      checkPhase ? "",
      meta ? { },
      passthru ? { },
      allowSubstitutes ? false,
      preferLocalBuild ? true,
      derivationArgs ? { },
    }:
    dress { inherit name meta passthru; } (
      writeTree name {
        ${lib.removePrefix "/" destination} = { inherit text executable; };
      }
    );
  writeText = name: text: writeTextFile { inherit name text; };
  writeTextDir =
    path: text:
    writeTextFile {
      name = builtins.baseNameOf path;
      inherit text;
      destination = "/${path}";
    };
  writeScript =
    name: text:
    writeTextFile {
      inherit name text;
      executable = true;
    };
  writeScriptBin =
    name: text:
    writeTextFile {
      inherit name text;
      executable = true;
      destination = "/bin/${name}";
      meta.mainProgram = name;
    };
  shebang = "#!${final.runtimeShell}\n";

  join =
    {
      name,
      paths,
      pathsToLink ? [ ],
      postBuild ? "",
      meta ? { },
      passthru ? { },
      ...
    }:
    dress { inherit name meta passthru; } (
      action (lib.strings.sanitizeDerivationName name) "join" (
        {
          paths = map toString (lib.flatten paths);
          inherit pathsToLink;
        }
        // lib.optionalAttrs (postBuild != "") {
          inherit postBuild;
          shell = static.bash;
          path = toolPath;
        }
      )
    );

  fetchurl =
    {
      url ? builtins.head urls,
      urls ? [ url ],
      sha256 ? "",
      hash ? "",
      sha512 ? "",
      name ? baseNameOf (toString url),
      executable ? false,
      ...
    }:
    derivation {
      inherit name url executable;
      system = "builtin";
      builder = "builtin:fetchurl";
      outputHash =
        if hash != "" then
          hash
        else if sha256 != "" then
          sha256
        else
          sha512;
      outputHashAlgo =
        if hash != "" then
          null
        else if sha256 != "" then
          "sha256"
        else
          "sha512";
      outputHashMode = if executable then "recursive" else "flat";
      unpack = false;
      preferLocalBuild = true;
    };
in
{
  base = prev.base // {
    inherit
      action
      static
      tools
      toolPath
      shellSetup
      ;
  };
}
// {
  # The machine's own bash: scripts run where /usr is mounted.
  runtimeShell = "${final.bash}/bin/bash";
  runtimeShellPackage = final.bash;
  shell = final.runtimeShell;

  inherit
    mkShell
    writeTree
    runCommandWith
    runCommand
    writeTextFile
    writeText
    writeTextDir
    writeScript
    writeScriptBin
    fetchurl
    ;
  mkShellNoCC = mkShell;
  runCommandLocal = runCommand;
  runCommandNoCC = runCommand;
  runCommandCC = runCommand;
  writeShellScript = name: text: writeScript name "${shebang}${text}\n";
  writeShellScriptBin = name: text: writeScriptBin name "${shebang}${text}\n";
  writeShellApplication =
    {
      name,
      text,
      runtimeInputs ? [ ],
      runtimeEnv ? null,
      meta ? { },
      passthru ? { },
      bashOptions ? [
        "errexit"
        "nounset"
        "pipefail"
      ],
      inheritPath ? true,
      ...
    }:
    writeTextFile {
      inherit name passthru;
      executable = true;
      destination = "/bin/${name}";
      meta = {
        mainProgram = name;
      }
      // meta;
      text =
        shebang
        + lib.concatMapStrings (o: "set -o ${o}\n") bashOptions
        + lib.concatStrings (
          lib.mapAttrsToList (k: v: "export ${lib.toShellVar k v}\n") (if runtimeEnv == null then { } else runtimeEnv)
        )
        + lib.optionalString (runtimeInputs != [ ]) (
          "export PATH=\"${lib.makeBinPath runtimeInputs}" + lib.optionalString inheritPath ":$PATH" + "\"\n"
        )
        + "${text}\n";
    };
  writers = {
    writeBash = name: text: final.writeShellScript name text;
    writeBashBin = name: text: final.writeShellScriptBin name text;
    writePython3 =
      name: _: text:
      writeScript name "#!${final.python3}/bin/python3\n${text}\n";
    writePython3Bin =
      name: _: text:
      writeScriptBin name "#!${final.python3}/bin/python3\n${text}\n";
    writeText = writeText;
    writeJSON = name: value: writeText name (builtins.toJSON value);
  };
  concatTextFile =
    {
      name,
      files,
      executable ? false,
      destination ? "",
      ...
    }:
    runCommand name { } ''
      mkdir -p "$(dirname "$out${destination}")"
      cat ${lib.escapeShellArgs (map toString files)} > "$out${destination}"
      ${lib.optionalString executable "chmod +x \"$out${destination}\""}
    '';
  concatText =
    name: files:
    final.concatTextFile {
      inherit name files;
    };
  replaceVars =
    file: vars:
    let
      names = lib.attrNames vars;
    in
    writeText (baseNameOf (toString file)) (
      builtins.replaceStrings (map (n: "@${n}@") names) (map (n: toString vars.${n}) names) (
        builtins.readFile file
      )
    );

  symlinkJoin =
    args:
    join (
      args // { name = args.name or "${args.pname}-${args.version}"; } // { pathsToLink = [ ]; }
    );
  buildEnv = args: join ({ pathsToLink = [ ]; } // args);
  linkFarm =
    name: entries:
    writeTree name (
      if lib.isAttrs entries then
        lib.mapAttrs (_: source: { inherit source; }) entries
      else
        lib.listToAttrs (map (e: lib.nameValuePair e.name { source = e.path; }) entries)
    );
  linkFarmFromDrvs =
    name: drvs:
    final.linkFarm name (
      map (d: {
        name = d.name;
        path = d;
      }) drvs
    );
  emptyFile = writeText "empty-file" "";
  emptyDirectory = writeTree "empty-directory" { };

  fetchzip =
    {
      url,
      sha256 ? "",
      hash ? sha256,
      name ? "source",
      ...
    }:
    builtins.fetchTarball {
      inherit url name;
      sha256 = hash;
    };
  fetchFromGitHub =
    {
      owner,
      repo,
      rev ? "refs/tags/${tag}",
      tag ? null,
      ...
    }@args:
    final.fetchzip (
      removeAttrs args [
        "owner"
        "repo"
        "rev"
        "tag"
      ]
      // {
        url = "https://github.com/${owner}/${repo}/archive/${rev}.tar.gz";
      }
    );
  fetchgit = { url, rev, ... }: builtins.fetchGit { inherit url rev; };

  # makeWrapper's functions, for scripts that name it in nativeBuildInputs.
  makeWrapper = writeTextFile {
    name = "make-wrapper";
    destination = "/nix-support/setup-hook";
    text = builtins.readFile ./make-wrapper.sh;
  };
  makeBinaryWrapper = final.makeWrapper;
}
