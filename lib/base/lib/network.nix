# Network addresses.
{ lib }:
let
  fail = text: throw "network.ipv6: `${text}' is not a valid IPv6 address";
  group =
    text: s: if builtins.match "[0-9a-fA-F]{1,4}" s == null then fail text else lib.fromHexString s;
  groups = s: if s == "" then [ ] else lib.splitString ":" s;

  # The eight 16 bit groups of an address.
  parse =
    text:
    let
      halves = lib.splitString "::" text;
      left = groups (lib.head halves);
      right = groups (lib.last halves);
      missing = 8 - lib.length left - lib.length right;
      all =
        if lib.length halves == 1 then
          left
        else if lib.length halves == 2 && missing >= 1 then
          left ++ lib.replicate missing "0" ++ right
        else
          fail text;
      numbers = map (group text) all;
    in
    if lib.length all == 8 then numbers else fail text;

  show = numbers: lib.concatMapStringsSep ":" (n: lib.toLower (lib.toHexString n)) numbers;
in
{
  ipv6 = {
    fromString =
      text:
      let
        parts = lib.splitString "/" text;
        prefixLength = if lib.length parts == 1 then 128 else lib.toInt (lib.last parts);
        address = parse (lib.head parts);
      in
      if lib.length parts > 2 || prefixLength < 0 || prefixLength > 128 then
        fail text
      else
        {
          address = show address;
          inherit prefixLength;
          addressCidr = "${show address}/${toString prefixLength}";
          url = "[${show address}]";
          urlWithPort = port: "[${show address}]:${toString port}";
          _ipv6 = address;
        };
    # The interface part that a MAC address gives (modified EUI-64).
    mkEUI64Suffix =
      mac:
      let
        bytes = map lib.fromHexString (
          lib.splitString ":" (lib.replaceStrings [ "-" "." ] [ ":" ":" ] mac)
        );
        first = lib.head bytes;
        flipped = builtins.bitXor first 2;
        at = builtins.elemAt bytes;
        pair = a: b: lib.toLower (lib.toHexString (a * 256 + b));
      in
      if lib.length bytes != 6 then
        throw "mkEUI64Suffix: `${mac}' is not a MAC address"
      else
        lib.concatStringsSep ":" [
          (pair flipped (at 1))
          (pair (at 2) 255)
          (pair 254 (at 3))
          (pair (at 4) (at 5))
        ];
  };
}
