# Strings, lists and sets: a little of each, with the corners.
{ lib, ... }:
{
  strings = {
    shell = lib.escapeShellArgs [
      "plain"
      "two words"
      "it's"
      ""
    ];
    vars = lib.toShellVars {
      a = [
        "x y"
        "z"
      ];
      b = {
        k = "v";
      };
      c = true;
    };
    split = lib.splitString "." "a..b.";
    trimmed = lib.trim "  a b \n";
    url = lib.escapeURL "a b/ü?";
    infix = lib.hasInfix "." "ab";
    older = lib.versionOlder "1.9" "1.10";
    numbers = map lib.toInt [
      " 7 "
      "-12"
    ];
    padded = lib.fixedWidthNumber 4 42;
    sanitized = lib.strings.sanitizeDerivationName "..a b/ü";
    name = lib.getName "hello-2.12";
    identifier = map lib.strings.escapeNixIdentifier [
      "a"
      "a.b"
      "if"
    ];
    camel = lib.toCamelCase "some-long_name";
    versions = [
      (lib.versions.majorMinor "1.2.3")
      (lib.versions.pad 3 "1-rc")
    ];
  };
  lists = {
    natural = lib.naturalSort [
      "a10"
      "a9"
      "b1"
    ];
    topological = lib.toposort (a: b: a < b) [
      3
      1
      2
    ];
    pages = [
      (lib.take 2 [ 1 ])
      (lib.drop 1 [
        1
        2
      ])
      (lib.takeEnd 1 [
        1
        2
      ])
      (lib.sublist 1 5 [
        1
        2
        3
      ])
    ];
    unique = lib.unique [
      1
      2
      1
    ];
    zipped = lib.zipLists [ 1 2 ] [ "a" ];
    flat = lib.flatten [
      1
      [
        2
        [ 3 ]
      ]
    ];
    on = lib.sortOn (x: -x) [
      1
      3
      2
    ];
  };
  sets = {
    merged =
      lib.recursiveUpdate
        {
          a.b = 1;
          a.c = 2;
        }
        {
          a.b = {
            d = 3;
          };
        };
    filtered = lib.filterAttrsRecursive (_: v: v != null) {
      a = null;
      b.c = null;
      b.d = 1;
    };
    collected = lib.collect lib.isInt {
      a.b = 1;
      c = 2;
    };
    product = lib.cartesianProduct {
      a = [
        1
        2
      ];
      b = [ 3 ];
    };
    updated = lib.updateManyAttrsByPath [
      {
        path = [
          "a"
          "b"
        ];
        update = x: x + 1;
      }
    ] { a.b = 1; };
    path = lib.attrByPath [ "a" "x" ] "none" { a.b = 1; };
  };
  formats = {
    ini = lib.generators.toINI { } {
      s = {
        a = 1;
        b = true;
        c = "x=y";
      };
    };
    git = lib.generators.toGitINI {
      user.name = "A \"B\"";
      url."git@x:".insteadOf = [
        "a"
        "b"
      ];
    };
    kv = lib.generators.toKeyValue { } { a = 1; };
    pretty = lib.generators.toPretty { } {
      a = [
        1
        null
      ];
      "b c" = "x\ny";
    };
    lua = lib.generators.toLua { multiline = false; } {
      a = [
        1
        (lib.mkLuaInline "f()")
      ];
    };
    dconf = lib.generators.toDconfINI { "a/b".c = [ "x" ]; };
    commandLine = lib.cli.toGNUCommandLineShell { } {
      v = true;
      name = [
        "a b"
        "c"
      ];
      q = false;
      n = 1;
    };
  };
  text = lib.textClosureMap lib.id {
    b = lib.stringAfter [ "a" ] "B";
    a = lib.noDepEntry "A";
  } [ "b" ];
  system = {
    inherit (lib.systems.elaborate "aarch64-linux")
      system
      config
      isAarch64
      isLinux
      linuxArch
      libc
      ;
    go = (lib.systems.elaborate "aarch64-linux").go.GOARCH;
  };
  overlays =
    let
      set = lib.makeExtensible (final: {
        a = 1;
        b = final.a + 1;
      });
    in
    removeAttrs (set.extend (_: prev: { a = prev.a + 10; })) [
      "__unfix__"
      "extend"
    ];
}
