# Pieces of text that name what must come before them.
{ lib }:
let
  # Names in an order where dependencies come first.
  textClosureList =
    pieces: wanted:
    let
      visit =
        state: name:
        if builtins.isString name && state.seen ? ${name} then
          state
        else if builtins.isString name then
          let
            entry = pieces.${name};
            before = builtins.foldl' visit (
              state
              // {
                seen = state.seen // {
                  ${name} = true;
                };
              }
            ) (entry.deps or [ ]);
          in
          before // { out = before.out ++ [ (if builtins.isString entry then entry else entry.text) ]; }
        else
          let
            before = builtins.foldl' visit state name.deps;
          in
          before // { out = before.out ++ [ name.text ]; };
    in
    (builtins.foldl' visit {
      seen = { };
      out = [ ];
    } wanted).out;

  noDepEntry = text: {
    inherit text;
    deps = [ ];
  };
in
{
  inherit textClosureList noDepEntry;
  textClosureMap =
    f: pieces: wanted:
    lib.concatStringsSep "\n" (map f (textClosureList pieces wanted));
  fullDepEntry = text: deps: { inherit text deps; };
  packEntry = deps: {
    inherit deps;
    text = "";
  };
  stringAfter = deps: text: { inherit text deps; };
}
