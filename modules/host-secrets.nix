# Secrets that are the host's own, taken over on request.
{ config, lib, ... }:
let
  cfg = config.codchi;
  driver = (import ../lib/drivers.nix).${cfg.driver.name};
  # Stronger than the defaults of a base's own modules and what they set, weaker than a person's mkForce.
  ours = lib.mkOverride 60;
  bundle = "/run/codchi/secrets/codchi-certificates";
  java = "/run/codchi/secrets/codchi-cacerts";
  secrets = {
    certificates = {
      capability = "certificates";
      what = "the host's own certificate authorities, so that company mirrors and proxies are trusted, and the host's proxy settings";
    };
    sshAgent = {
      capability = "ssh-agent";
      what = "the host's ssh agent, so that keys are used without leaving it";
    };
    gitCredentials = {
      capability = "git-credentials";
      what = "the passwords that git on the host remembers, for the servers its modules come from";
    };
    netrc = {
      capability = "netrc";
      what = "the host's netrc, for downloads that need a log-in";
    };
  };
in
{
  imports = [
    ./capabilities.nix
    ./driver.nix
    ./enable.nix
  ];

  options.codchi.hostSecrets = lib.mapAttrs (_: secret: {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = "Whether the machine gets ${secret.what}.";
    };
  }) secrets;

  config = lib.mkMerge [
    (lib.mkIf cfg.enable {
      codchi.optionalCapabilities = lib.concatLists (
        lib.mapAttrsToList (
          name: secret: lib.optional cfg.hostSecrets.${name}.enable secret.capability
        ) secrets
      );
    })
    (lib.mkIf (cfg.enable && driver.attended && cfg.hostSecrets.certificates.enable) {
      # Where programs look by themselves, and the variables of those that look elsewhere.
      environment.etc =
        lib.genAttrs
          [
            "ssl/certs/ca-certificates.crt"
            "ssl/certs/ca-bundle.crt"
            "pki/tls/certs/ca-bundle.crt"
          ]
          (_: {
            source = ours bundle;
          })
        // {
          "ssl/certs/java/cacerts".source = ours java;
        };
      environment.variables =
        lib.genAttrs [
          "CURL_CA_BUNDLE"
          "GIT_SSL_CAINFO"
          "NODE_EXTRA_CA_CERTS"
          "REQUESTS_CA_BUNDLE"
        ] (_: lib.mkDefault bundle)
        // {
          # Java out of nixpkgs; Debian's looks where the link is.
          JAVAX_NET_SSL_TRUSTSTORE = lib.mkDefault java;
        };
    })
    (lib.mkIf (cfg.enable && driver.kind == "container" && cfg.hostSecrets.gitCredentials.enable) {
      programs.git = {
        enable = lib.mkDefault true;
        config.credential.helper = "/run/codchi/bin/codchi-agent --git-credential";
      };
    })
  ];
}
