{ config, lib, ... }:
let
  cfg = config.codchi;
  isPort = text: builtins.match "[1-9][0-9]{0,4}" text != null && builtins.fromJSON text <= 65535;
  badPorts = lib.filter (port: !(isPort port)) (lib.attrNames cfg.ports);
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
    description = "Ports forwarded from the host, by port in the machine.";
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = badPorts == [ ];
        message = "codchi.ports: ${lib.concatStringsSep ", " badPorts}: give port numbers between 1 and 65535";
      }
    ];
  };
}
