# What each type takes, how it merges and how it is called.
{ lib, ... }:
let
  inherit (lib) types;
  takes = type: values: map type.check values;
  merged =
    type: values:
    (lib.evalModules {
      modules = [
        { options.x = lib.mkOption { inherit type; }; }
      ]
      ++ map (x: { inherit x; }) values;
    }).config.x;
in
{
  checks = {
    port = takes types.port [
      (-1)
      0
      65535
      65536
      "80"
    ];
    positive = takes types.ints.positive [
      0
      1
    ];
    between = takes (types.ints.between 2 4) [
      1
      2
      4
      5
    ];
    path = takes types.path [
      "/x"
      "x"
      1
    ];
    nonEmpty = takes types.nonEmptyStr [
      ""
      " "
      "a"
    ];
    oneLine = takes types.singleLineStr [
      "a"
      "a\n"
      "a\nb"
    ];
    passwd = takes (types.passwdEntry types.str) [
      "a"
      "a:b"
    ];
    matching = takes (types.strMatching "[a-z]+") [
      "abc"
      "a1"
    ];
    either = takes (types.either types.int types.str) [
      1
      "a"
      [ ]
    ];
    enum =
      takes
        (types.enum [
          "a"
          1
        ])
        [
          "a"
          1
          "b"
        ];
    nullOr = takes (types.nullOr types.int) [
      null
      1
      ""
    ];
  };
  merges = {
    commas = merged types.commas [
      "b"
      "a"
    ];
    anything = merged types.anything [
      { a.b = 1; }
      { a.c = lib.mkForce 2; }
      { a.c = 3; }
    ];
    coerced = merged (types.coercedTo types.int toString types.str) [ 5 ];
    coercedList = merged (types.listOf (types.coercedTo types.int toString types.str)) [
      [
        1
        "a"
      ]
    ];
    function =
      (merged (types.functionTo (types.listOf types.int)) [
        (x: [ x ])
        (x: [ (x + 1) ])
      ])
        1;
    nullAndNull = merged (types.nullOr types.int) [
      null
      null
    ];
    deferred =
      (lib.evalModules {
        modules = [
          (merged types.deferredModule [
            { options.y = lib.mkOption { default = 1; }; }
            { y = 2; }
          ])
        ];
      }).config.y;
    tag = merged (types.attrTag {
      num = lib.mkOption { type = types.int; };
      word = lib.mkOption { type = types.str; };
    }) [ { word = "w"; } ];
  };
  descriptions = map (t: t.description) [
    (types.listOf (types.nullOr types.port))
    (types.attrsOf (types.submodule { }))
    (types.oneOf [
      types.str
      types.int
      types.path
    ])
    (types.coercedTo types.str lib.id types.path)
    (types.ints.between 1 9)
    types.pathInStore
    types.shellPackage
  ];
}
