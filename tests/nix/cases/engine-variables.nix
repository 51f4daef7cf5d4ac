# Unknown and unused variables are both named; text that only looks like an address is left alone.
{ codchi, ... }:
let
  driver = codchi.mkDriver {
    name = "x";
    kind = "vm";
    description = "a driver";
    variables = [
      "name"
      "root"
    ];
  };
  engine = {
    title = "@name@";
    list = [
      { path = "/a/@rot@/@name@"; }
      "me@example.org"
      "@"
      7
      null
    ];
  };
in
{
  used = codchi.engine.usedVariables engine;
  errors = codchi.engine.variableErrors driver engine;
}
