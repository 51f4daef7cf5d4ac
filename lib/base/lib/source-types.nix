# Where the code of a package came from.
{ lib }:
let
  kind = shortName: isSource: { inherit shortName isSource; };
in
{
  fromSource = kind "fromSource" true;
  binaryNativeCode = kind "binaryNativeCode" false;
  binaryBytecode = kind "binaryBytecode" false;
  binaryFirmware = kind "binaryFirmware" false;
  obfuscatedCode = kind "obfuscatedCode" false;
}
