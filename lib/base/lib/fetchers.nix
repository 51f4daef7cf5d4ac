# What fetching derivations share.
{ lib }:
let
  normalizeHash =
    {
      hashTypes ? [ "sha256" ],
      required ? true,
    }:
    args:
    let
      given = lib.filter (t: args ? ${t}) ([ "hash" ] ++ hashTypes);
      name = lib.head given;
      rest = removeAttrs args ([ "hash" ] ++ hashTypes);
    in
    if given == [ ] then
      if required then throw "fetcher called without `hash'" else rest
    else if lib.length given > 1 then
      throw "fetcher called with several hashes: ${toString given}"
    else if name == "hash" then
      rest
      // {
        outputHash = if args.hash == "" then lib.fakeHash else args.hash;
        outputHashAlgo = null;
      }
    else
      rest
      // {
        outputHash = args.${name};
        outputHashAlgo = name;
      };
in
{
  inherit normalizeHash;
  proxyImpureEnvVars = [
    "http_proxy"
    "https_proxy"
    "ftp_proxy"
    "all_proxy"
    "no_proxy"
    "HTTP_PROXY"
    "HTTPS_PROXY"
    "FTP_PROXY"
    "ALL_PROXY"
    "NO_PROXY"
    "NIX_SSL_CERT_FILE"
  ];
  withNormalizedHash =
    options: fetcher:
    lib.setFunctionArgs (args: fetcher (normalizeHash options args)) (
      removeAttrs (lib.functionArgs fetcher) [
        "outputHash"
        "outputHashAlgo"
      ]
      // lib.genAttrs ([ "hash" ] ++ options.hashTypes or [ "sha256" ]) (_: true)
    );
}
