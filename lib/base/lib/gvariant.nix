# Values of GLib's GVariant text format, as dconf reads them.
{ lib }:
let
  type = {
    arrayOf = t: "a${t}";
    maybeOf = t: "m${t}";
    tupleOf = ts: "(${lib.concatStrings ts})";
    dictionaryEntryOf = k: v: "{${k}${v}}";
    string = "s";
    boolean = "b";
    uchar = "y";
    int16 = "n";
    uint16 = "q";
    int32 = "i";
    uint32 = "u";
    int64 = "x";
    uint64 = "t";
    double = "d";
    objectpath = "o";
    variant = "v";
  };

  make = type: value: show: {
    _type = "gvariant";
    inherit type value;
    __toString = show;
  };
  isGVariant = x: x._type or null == "gvariant";

  constructors = {
    mkUchar = num type.uchar;
    mkInt16 = num type.int16;
    mkUint16 = num type.uint16;
    mkInt32 = value: make type.int32 value (self: toString self.value);
    mkUint32 = num type.uint32;
    mkInt64 = num type.int64;
    mkUint64 = num type.uint64;
  };
  num = t: value: make t value (self: "@${self.type} ${toString self.value}");

  mkString =
    value:
    make type.string value (
      self: "'${lib.replaceStrings [ "\n" ] [ "\\n" ] (lib.escape [ "'" "\\" ] self.value)}'"
    );
  mkBoolean = value: make type.boolean value (self: lib.boolToString self.value);
  mkDouble = value: make type.double value (self: toString self.value);

  mkArray =
    elements:
    let
      values = map mkValue elements;
      first =
        if values == [ ] then throw "Please create empty array with mkEmptyArray." else lib.head values;
    in
    if lib.all (v: v.type == first.type) values then
      make (type.arrayOf first.type) values (
        self: "@${self.type} [${lib.concatMapStringsSep "," toString self.value}]"
      )
    else
      throw "Elements in a list should have same type.";

  mkValue =
    v:
    if isGVariant v then
      v
    else if builtins.isInt v then
      throw "There are many integer types in GVariant; use one of ${
        lib.concatStringsSep ", " (map (c: "lib.gvariant.${c}") (lib.attrNames constructors))
      }."
    else if builtins.isBool v then
      mkBoolean v
    else if builtins.isFloat v then
      mkDouble v
    else if builtins.isString v then
      mkString v
    else if builtins.isList v then
      mkArray v
    else if builtins.isAttrs v && v ? type && v ? value then
      v
    else
      throw "The GVariant type of a ${builtins.typeOf v} can't be inferred.";

  mkMaybe =
    elementType: element:
    make (type.maybeOf elementType) element (
      self: if self.value == null then "@${self.type} nothing" else "just ${toString self.value}"
    );
in
{
  inherit
    type
    isGVariant
    mkString
    mkBoolean
    mkDouble
    mkArray
    mkValue
    mkMaybe
    ;
  intConstructors = map (name: {
    conversion = name;
    type = (constructors.${name} 0).type;
    signed = name != "mkUchar" && !lib.hasPrefix "mkU" name;
  }) (lib.attrNames constructors);
  mkEmptyArray = elementType: make (type.arrayOf elementType) [ ] (self: "@${self.type} []");
  mkObjectpath =
    value: make type.objectpath value (self: "objectpath '${lib.escape [ "'" ] self.value}'");
  mkVariant =
    value:
    let
      inner = mkValue value;
    in
    make type.variant inner (self: "<${toString self.value}>");
  mkDictionaryEntry =
    name: value:
    let
      k = mkValue name;
      v = mkValue value;
    in
    make (type.dictionaryEntryOf k.type v.type) { inherit name value; } (
      self: "@${self.type} {${toString k},${toString v}}"
    );
  mkNothing = elementType: mkMaybe elementType null;
  mkJust =
    element:
    let
      inner = mkValue element;
    in
    mkMaybe inner.type inner;
  mkTuple =
    elements:
    let
      values = map mkValue elements;
    in
    make (type.tupleOf (map (v: v.type) values)) values (
      self: "@${self.type} (${lib.concatMapStringsSep "," toString self.value})"
    );
}
// constructors
