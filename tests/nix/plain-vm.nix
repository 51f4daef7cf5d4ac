# Driver `none` in a NixOS VM: account, secrets file, init script once.
{ self, pkgs }:
pkgs.testers.runNixOSTest {
  name = "codchi-plain-vm";

  nodes.machine = {
    imports = [ self.nixosModules.default ];
    codchi = {
      enable = true;
      user.name = "ada";
      secrets.API_TOKEN.description = "Token of the API";
      initScript = ''
        date +%s%N >> ~/ran
      '';
    };
    environment.etc.codchi-env.text = ''
      API_TOKEN=abc
    '';
  };

  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.wait_until_succeeds("test -e /var/lib/codchi/initialised")
    assert machine.succeed("id -u ada").strip() == "1000"
    machine.succeed("su - ada -c 'sudo -n true'")
    assert machine.succeed("su - ada -c 'echo $API_TOKEN'").strip() == "abc"
    assert machine.succeed("wc -l < /home/ada/ran").strip() == "1"

    # Not again at the next start, but when it is asked for.
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    assert machine.succeed("wc -l < /home/ada/ran").strip() == "1"
    machine.succeed("su - ada -c codchi-init")
    assert machine.succeed("wc -l < /home/ada/ran").strip() == "2"
  '';
}
