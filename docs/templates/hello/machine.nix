{ pkgs, ... }:
{
  environment.systemPackages = [
    pkgs.git
    pkgs.hello
    pkgs.jq
  ];

  environment.variables.GREETING = "Hello from your machine";

  # Writes a line to its log every time the machine starts: `journalctl -u greet`.
  systemd.services.greet = {
    description = "A greeting";
    wantedBy = [ "multi-user.target" ];
    path = [ pkgs.hello ];
    script = "hello --greeting='The machine is up'";
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
    };
  };

  # Runs once, as you, when the machine is created.
  codchi.initScript = ''
    mkdir -p ~/hello
    echo "Make yourself at home." > ~/hello/README
  '';
}
