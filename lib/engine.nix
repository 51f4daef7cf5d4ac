# Engine settings: what a driver's host.nix renders.
{ lib }:
let
  inherit (builtins)
    attrNames
    concatLists
    concatStringsSep
    elem
    filter
    isAttrs
    isList
    isString
    ;

  variablesIn =
    value:
    if isString value then
      concatLists (filter isList (builtins.split "@([a-zA-Z][a-zA-Z0-9]*)@" value))
    else if isList value then
      concatLists (map variablesIn value)
    else if isAttrs value then
      concatLists (map variablesIn (builtins.attrValues value))
    else
      [ ];

  overlay =
    base: extra:
    if isAttrs base && isAttrs extra then
      base
      // builtins.mapAttrs (
        name: value: if base ? ${name} then overlay base.${name} value else value
      ) extra
    else if isList base && isList extra then
      base ++ extra
    else
      extra;
in
{
  /*
    The variables of engine settings, each once, sorted.

    Example: usedVariables { init = [ "@toplevel@/init" ]; } => [ "toplevel" ]
  */
  usedVariables = engine: lib.sort (a: b: a < b) (lib.unique (variablesIn engine));

  /*
    What is wrong with the variables of engine settings, as messages; [ ] when all is well.

    Takes the driver's record and the engine settings. A variable outside the record's list is an error, and so is
    a listed one that the settings never use.
  */
  variableErrors =
    driver: engine:
    let
      used = lib.unique (variablesIn engine);
    in
    map (
      name:
      "the engine settings of driver `${driver.name}` use @${name}@, which is none of its variables: ${concatStringsSep ", " driver.variables}"
    ) (filter (name: !(elem name driver.variables)) used)
    ++ map (name: "the engine settings of driver `${driver.name}` never use @${name}@") (
      filter (name: !(elem name used)) driver.variables
    );

  /*
    Lays a module's `driver.settings.<driver>` over rendered engine settings.

    Attribute sets merge, lists are appended to, everything else is replaced. Keys the engine does not have at the
    top are refused, so that a spelling mistake is an error.
  */
  withSettings =
    driver: settings: engine:
    let
      unknown = filter (key: !(engine ? ${key})) (attrNames settings);
    in
    if unknown == [ ] then
      overlay engine settings
    else
      throw "codchi.driver.settings.${driver.name} has no `${concatStringsSep "`, `" unknown}`; it has ${concatStringsSep ", " (attrNames engine)}";
}
