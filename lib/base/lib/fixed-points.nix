# Fixed points and overlays of attribute sets.
{ ... }:
let
  fix =
    f:
    let
      result = f result;
    in
    result;

  fix' =
    f:
    let
      result = f result // {
        __unfix__ = f;
      };
    in
    result;

  # Applies `f` until its result no longer changes.
  converge =
    f: x:
    let
      next = f x;
    in
    if next == x then x else converge f next;

  # An overlay laid over a fixed-point function.
  extends =
    overlay: f: final:
    let
      prev = f final;
    in
    prev // overlay final prev;

  composeExtensions =
    first: second: final: prev:
    let
      added = first final prev;
    in
    added // second final (prev // added);

  composeManyExtensions =
    overlays: final: prev:
    let
      step =
        state: overlay:
        let
          added = overlay final state.prev;
        in
        {
          prev = state.prev // added;
          sum = state.sum // added;
        };
    in
    (builtins.foldl' step {
      inherit prev;
      sum = { };
    } overlays).sum;

  makeExtensible = makeExtensibleWithCustomName "extend";

  makeExtensibleWithCustomName =
    name: f:
    fix' (
      self:
      f self
      // {
        ${name} = overlay: makeExtensibleWithCustomName name (extends overlay f);
      }
    );

  # An overlay out of any of: a set, a function of the previous set, an overlay.
  toExtension =
    x:
    if builtins.isFunction x || x ? __functor then
      final: prev:
      let
        once = x final;
      in
      if builtins.isFunction once then once prev else x prev
    else
      _: _: x;
in
{
  inherit
    fix
    fix'
    converge
    extends
    composeExtensions
    composeManyExtensions
    makeExtensible
    makeExtensibleWithCustomName
    toExtension
    ;
}
