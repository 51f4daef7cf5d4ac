{ config, lib, ... }:
let
  cfg = config.codchi;
  isPort = text: builtins.match "[1-9][0-9]{0,4}" text != null && builtins.fromJSON text <= 65535;
  badPorts = lib.filter (port: !(isPort port)) (lib.attrNames cfg.ports);
  onHost = lib.groupBy (port: "${toString cfg.ports.${port}.host}/${cfg.ports.${port}.protocol}") (
    lib.attrNames cfg.ports
  );
  clashes = lib.filterAttrs (_: ports: lib.length ports > 1) onHost;
in
{
  imports = [ ./enable.nix ];

  options.codchi.ports = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule (
        { name, ... }:
        {
          options = {
            host = lib.mkOption {
              type = lib.types.port;
              default = builtins.fromJSON name;
              defaultText = lib.literalMD "the port in the machine";
              example = 18080;
              description = "Port on the host, on 127.0.0.1.";
            };
            protocol = lib.mkOption {
              type = lib.types.enum [
                "tcp"
                "udp"
              ];
              default = "tcp";
              example = "udp";
              description = "Protocol.";
            };
          };
        }
      )
    );
    default = { };
    example = {
      "8080".host = 18080;
    };
    description = ''
      Ports on 127.0.0.1 of the host that lead into the machine, by port in the machine. The person is asked before the
      first start, and can choose another with `codchi port add`.
    '';
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = badPorts == [ ];
        message = "codchi.ports: ${lib.concatStringsSep ", " badPorts}: give port numbers between 1 and 65535";
      }
      {
        assertion = clashes == { };
        message = "codchi.ports: ${
          lib.concatStringsSep "; " (
            lib.mapAttrsToList (
              host: ports: "${lib.concatStringsSep " and " ports} are both ${host} on the host"
            ) clashes
          )
        }: give each a `host` of its own";
      }
    ];
  };
}
