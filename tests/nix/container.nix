# A native machine's system reaches `running` under systemd-nspawn in a user namespace.
{ machine, pkgs }:
let
  inherit (machine [ ../../docs/templates/hello/machine.nix ]) config;
  inherit (config.system.build) toplevel;
in
pkgs.testers.runNixOSTest {
  name = "codchi-container";

  nodes.host = {
    virtualisation.additionalPaths = [ toplevel ];
  };

  testScript = ''
    host.wait_for_unit("multi-user.target")
    host.succeed("mkdir -p /root/machine/{etc,usr,nix/store,nix/var/nix/daemon-socket} /root/host")
    host.succeed("echo 'nameserver 192.0.2.1' > /root/host/resolv.conf")
    host.succeed(
        "systemd-run --unit=machine --property=Delegate=yes --property=Type=notify"
        " systemd-nspawn --machine=hello --directory=/root/machine --private-users=524288 --private-users-ownership=chown"
        " --private-network --notify-ready=yes --keep-unit --register=no --kill-signal=SIGRTMIN+3"
        " --bind-ro=/nix/store:/nix/store:idmap --bind-ro=/root/host:/run/codchi/host:idmap"
        " ${toplevel}/init"
    )
    leader = host.succeed("pgrep -P $(systemctl show --property=MainPID --value machine)").strip()
    enter = f"nsenter --target {leader} --all ${toplevel}/sw/bin/"

    host.wait_until_succeeds(f"{enter}systemctl is-active multi-user.target")
    # Only the agent, for which there is no program here, may be missing.
    lines = host.succeed(f"{enter}systemctl --failed --plain --no-legend").splitlines()
    failed = {line.split()[0] for line in lines if line.strip()}
    assert failed <= {"codchi-agent.service"}, failed
    host.succeed(f"{enter}systemctl is-active greet.service")
    assert "192.0.2.1" in host.succeed(f"{enter}cat /etc/resolv.conf")
    assert host.succeed(f"{enter}id -u codchi").strip() == "1000"
    host.succeed("test -e ${toplevel}/codchi/manifest.json")
  '';
}
