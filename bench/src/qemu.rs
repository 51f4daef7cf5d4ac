//! Virtual machines: their start beside what they say themselves that it took, commands beside ssh.

use std::net::TcpListener;

use crate::Error;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, median, ms, output, timed};

const NAME: &str = "bench-vm";
const MODULE: &str = "{ services.openssh.enable = true; }\n";
const FLAKE: &str = "{ outputs = _: { nixosModules.default = ./module.nix; }; }\n";

/// The time of a command in a virtual machine.
pub fn measure(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    host.machine()?;
    let source = host.scratch("vm-source");
    codchi_fs::create_dir_all(&source)?;
    codchi_fs::write(source.join("flake.nix"), FLAKE)?;
    codchi_fs::write(source.join("module.nix"), MODULE)?;
    timed(host.init_of(NAME, &source, &["--driver", "qemu"])?)?;
    let mut figures = start(host, runs.min(5))?;
    figures.extend(exec(host, runs)?);
    Ok(figures)
}

/// From nothing to `running`, beside the time from the kernel's first moment until systemd has started everything: what a bare QEMU
/// with this kernel, root and store takes at least, since it begins before its kernel does.
fn start(host: &Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let (mut ours, mut own) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        timed(host.codchi(&["stop", NAME]))?;
        ours.push(ms(timed(host.codchi(&["start", NAME]))?));
        let finished = "systemctl show --property=FinishTimestampMonotonic --value";
        let said = output(host.codchi(&["exec", "-u", "root", NAME, "--", "sh", "-c", finished]))?;
        let microseconds: f64 = said
            .trim()
            .parse()
            .map_err(|_| Error::Not(format!("`{}` is no time of a boot", said.trim())))?;
        own.push(microseconds / 1000.0);
    }
    Ok(vec![Figure {
        name: format!("codchi start {NAME}, on QEMU"),
        ours: median(ours),
        beside: Some(("its own boot".into(), median(own))),
        unit: Unit::Ms,
        bound: Bound::Times(1.1),
    }])
}

fn exec(host: &Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let key = host.scratch("vm-key");
    let mut keygen = host.command("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    timed(keygen)?;
    let public = codchi_fs::read_to_string(key.with_extension("pub"))?;
    let script = format!(
        "mkdir -m 700 -p ~/.ssh && echo '{}' > ~/.ssh/authorized_keys",
        public.trim()
    );
    timed(host.codchi(&["exec", NAME, "--", "sh", "-c", &script]))?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let port = free.map_err(|e| Error::Not(format!("no port is free: {e}")))?;
    let port = port.port().to_string();
    timed(host.codchi(&["port", "add", NAME, &format!("{port}:22")]))?;
    let options = [
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ];
    let ours = || host.codchi(&["exec", NAME, "--", "true"]);
    let theirs = || {
        let mut ssh = host.command("ssh");
        ssh.args(options).arg("-i").arg(&key);
        ssh.args(["-p", &port, "codchi@127.0.0.1", "true"]);
        ssh
    };
    let times = in_turns(&[&ours, &theirs], runs.min(15))?;
    Ok(vec![Figure {
        name: format!("codchi exec {NAME} -- true, on QEMU"),
        ours: times[0],
        beside: Some(("ssh".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Times(1.2),
    }])
}
