# Command lines out of attribute sets.
{ lib }:
let
  toCommandLine =
    optionFormat: set:
    lib.concatLists (
      lib.mapAttrsToList (
        name: value:
        let
          format = optionFormat name;
          render =
            v:
            if v == null || v == false && !(format.explicitBool or false) then
              [ ]
            else if v == true && !(format.explicitBool or false) then
              [ format.option ]
            else
              let
                text = (format.formatArg or (lib.generators.mkValueStringDefault { })) v;
              in
              if format.sep or null == null then
                [
                  format.option
                  text
                ]
              else
                [ "${format.option}${format.sep}${text}" ];
        in
        if builtins.isList value then lib.concatMap render value else render value
      ) set
    );

  gnuFormat =
    {
      isLong ? name: builtins.stringLength name > 1,
      explicitBool ? false,
      formatArg ? lib.generators.mkValueStringDefault { },
    }:
    name: {
      option = if isLong name then "--${name}" else "-${name}";
      sep = if isLong name then "=" else "";
      inherit explicitBool formatArg;
    };

  toGNUCommandLine =
    {
      mkOptionName ? k: if builtins.stringLength k == 1 then "-${k}" else "--${k}",
      mkBool ? k: v: lib.optional v (mkOptionName k),
      mkList ? k: v: lib.concatMap (mkOption k) v,
      mkOption ?
        k: v:
        if v == null then
          [ ]
        else if optionValueSeparator == null then
          [
            (mkOptionName k)
            (lib.generators.mkValueStringDefault { } v)
          ]
        else
          [ "${mkOptionName k}${optionValueSeparator}${lib.generators.mkValueStringDefault { } v}" ],
      optionValueSeparator ? null,
    }:
    set:
    lib.concatLists (
      lib.mapAttrsToList (
        k: v:
        if builtins.isBool v then
          mkBool k v
        else if builtins.isList v then
          mkList k v
        else
          mkOption k v
      ) set
    );
in
{
  inherit toCommandLine toGNUCommandLine;
  toGNUCommandLineShell = options: set: lib.escapeShellArgs (toGNUCommandLine options set);
  toCommandLineShell = format: set: lib.escapeShellArgs (toCommandLine format set);
  toCommandLineGNU = options: toCommandLine (gnuFormat options);
  toCommandLineShellGNU = options: set: lib.escapeShellArgs (toCommandLine (gnuFormat options) set);
}
