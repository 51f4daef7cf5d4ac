# Facts about packages: programs, priorities, platforms, licences.
{ lib }:
let
  addMetaAttrs =
    new: drv:
    if drv ? overrideAttrs then
      drv.overrideAttrs (old: {
        meta = old.meta or { } // new;
      })
    else
      drv // { meta = drv.meta or { } // new; };

  setPrio = priority: addMetaAttrs { inherit priority; };
  setName = name: drv: drv // { inherit name; };

  getExe' =
    pkg: program:
    if !lib.isDerivation pkg then
      throw "lib.meta.getExe': The first argument must be a derivation, not ${builtins.typeOf pkg}."
    else if !lib.isString program then
      throw "lib.meta.getExe': The second argument must be a string, not ${builtins.typeOf program}."
    else if lib.hasInfix "/" program then
      throw "lib.meta.getExe': The second argument \"${program}\" is a nested path with a \"/\" character, but it should just be the name of the executable instead."
    else
      "${lib.getBin pkg}/bin/${program}";

  bySpdx = lib.listToAttrs (
    map (licence: lib.nameValuePair (lib.toLower licence.spdxId) licence) (
      lib.filter (licence: licence ? spdxId) (lib.attrValues lib.licenses)
    )
  );
in
{
  inherit
    addMetaAttrs
    setPrio
    setName
    getExe'
    ;
  dontDistribute = addMetaAttrs { hydraPlatforms = [ ]; };
  updateName = f: drv: setName (f drv.name) drv;
  appendToName =
    suffix:
    lib.updateName (
      name:
      let
        parsed = builtins.parseDrvName name;
      in
      "${parsed.name}-${suffix}-${parsed.version}"
    );
  mapDerivationAttrset = f: lib.mapAttrs (_: v: if lib.isDerivation v then f v else v);
  defaultPriority = 5;
  lowPrio = setPrio 10;
  lowPrioSet = lib.mapDerivationAttrset lib.lowPrio;
  hiPrio = setPrio (-10);
  hiPrioSet = lib.mapDerivationAttrset lib.hiPrio;
  getExe =
    pkg:
    getExe' pkg (
      pkg.meta.mainProgram or (
        # A package that names no program is asked for its own name, and that is said.
        lib.warn
          "getExe: Package ${
            lib.generators.toPretty { } (pkg.meta.name or pkg.pname or pkg.name)
          } does not have the meta.mainProgram attribute. We'll assume that the main program has the same name for now, but this behavior is deprecated, because it leads to surprising errors when the assumption does not hold. If the package has a main program, please set `meta.mainProgram` in its definition to make this warning go away. Otherwise, if the package does not have a main program, or if you don't control its definition, use getExe' to specify the name to the program, such as lib.getExe' foo \"bar\"."
          lib.getName
          pkg
      )
    );
  platformMatch =
    platform: pattern:
    if lib.isString pattern then
      platform.system or platform == pattern
    else
      lib.matchAttrs (if pattern ? parsed then pattern else { parsed = pattern; }) platform;
  availableOn =
    platform: pkg:
    (pkg.meta.platforms or null == null || lib.any (lib.meta.platformMatch platform) pkg.meta.platforms)
    && !lib.any (lib.meta.platformMatch platform) (pkg.meta.badPlatforms or [ ]);
  licensesSpdx = lib.mapAttrs' (_: l: lib.nameValuePair l.spdxId l) bySpdx;
  getLicenseFromSpdxId =
    id:
    lib.getLicenseFromSpdxIdOr id (
      lib.warn "getLicenseFromSpdxId: No license matches the given SPDX ID: ${id}" { shortName = id; }
    );
  getLicenseFromSpdxIdOr = id: fallback: bySpdx.${lib.toLower id} or fallback;
}
