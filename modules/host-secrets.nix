# Secrets that are the host's own, taken over on request.
{ config, lib, ... }:
let
  cfg = config.codchi;
  secrets = {
    certificates = {
      capability = "certificates";
      what = "the host's own certificate authorities, so that company mirrors and proxies are trusted";
    };
    sshAgent = {
      capability = "ssh-agent";
      what = "the host's ssh agent, so that keys are used without leaving it";
    };
    gitCredentials = {
      capability = "git-credentials";
      what = "the host's git credential helper";
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

  config = lib.mkIf cfg.enable {
    codchi.optionalCapabilities = lib.concatLists (
      lib.mapAttrsToList (
        name: secret: lib.optional cfg.hostSecrets.${name}.enable secret.capability
      ) secrets
    );
  };
}
