//! The figures themselves.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::host::{Host, MACHINE};
use crate::measure::{Bound, Figure, Unit, in_turns, median, ms, output, timed};
use crate::peers;

/// What can be measured, in the order it is.
pub const NAMES: &[&str] = &[
    "version",
    "init",
    "second",
    "exec",
    "noop",
    "tree",
    "memory",
    "start",
    "secrets",
    "incus",
    "lxd",
    "many",
    "duplicate",
    "export",
    "qemu",
];

/// Measures one.
pub fn measure(name: &str, host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    match name {
        "version" => version(host, runs),
        "init" => init(host),
        "second" => second(host),
        "exec" => exec(host, runs),
        "noop" => noop(host, runs),
        "tree" => tree(host, runs),
        "memory" => memory(host),
        "secrets" => crate::secrets::measure(host, runs),
        "incus" => crate::incus::measure(&crate::incus::INCUS, host, runs),
        "lxd" => crate::incus::measure(&crate::incus::LXD, host, runs),
        "many" => crate::life::many(host, runs),
        "duplicate" => crate::life::duplicate(host),
        "export" => crate::life::export(host),
        "qemu" => crate::qemu::measure(host, runs),
        _ => start(host),
    }
}

fn version(host: &Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let ours = || host.codchi(&["--version"]);
    let floor = || host.command("/bin/true");
    let times = in_turns(&[&ours, &floor], runs)?;
    Ok(vec![Figure {
        name: "codchi --version".into(),
        ours: times[0],
        beside: Some(("true".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Most(3.0),
    }])
}

fn exec(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let name = host.machine()?;
    let leader = host.leader(name)?;
    let ours = || host.codchi(&["exec", name, "--", "true"]);
    // Looked up on the host, then given the machine's own search path: it finds `true` inside.
    let program = which("nsenter")?;
    let nsenter = || {
        let mut command = host.command(&program);
        command
            .args(["-t", &leader, "-a", "true"])
            .env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin");
        command
    };
    let times = in_turns(&[&ours, &nsenter], runs)?;
    let figure = |peer: &str, value: f64, bound| Figure {
        name: format!("codchi exec {name} -- true"),
        ours: times[0],
        beside: Some((peer.into(), value)),
        unit: Unit::Ms,
        bound,
    };
    let mut figures = vec![figure("nsenter -a", times[1], Bound::Times(1.5))];
    for peer in peers::all(host)? {
        match peer.median(runs.min(20)) {
            Ok(value) => figures.push(figure(peer.name, value, Bound::None)),
            Err(e) => eprintln!("{}: not measured: {e}", peer.name),
        }
    }
    Ok(figures)
}

/// Where a program is.
pub fn which(program: &str) -> Result<std::path::PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
        .ok_or_else(|| Error::Not(format!("`{program}` is not installed")))
}

fn noop(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let name = host.machine()?;
    timed(host.codchi(&["rebuild", name]))?;
    let ours = || host.codchi(&["rebuild", name]);
    let floor = || host.codchi(&["--version"]);
    let times = in_turns(&[&ours, &floor], runs.min(30))?;
    Ok(vec![Figure {
        name: "codchi rebuild, nothing changed".into(),
        ours: times[0],
        beside: Some(("codchi --version".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Most(100.0),
    }])
}

/// The same for a machine that has a work tree of many files among its inputs.
fn tree(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let name = host.machine()?;
    let tree = host
        .tree
        .clone()
        .ok_or_else(|| Error::Not("`--tree FOLDER` names a git work tree".into()))?;
    let flake = host
        .scratch(".config/codchi/machines")
        .join(name)
        .join("flake.nix");
    let before = codchi_fs::read_to_string(&flake)?;
    let input = format!(
        "{{\n  inputs.tree = {{ url = \"git+file://{}\"; flake = false; }};\n",
        tree.display()
    );
    codchi_fs::write(&flake, before.replacen("{\n", &input, 1))?;
    timed(host.codchi(&["rebuild", name]))?;
    // What was written just now is read again until its times are old enough to tell.
    std::thread::sleep(Duration::from_secs(3));
    timed(host.codchi(&["rebuild", name]))?;
    let ours = || host.codchi(&["rebuild", name]);
    let list = || {
        let mut git = host.command("git");
        git.arg("-C").arg(&tree).args(["ls-files", "-z"]);
        git
    };
    let times = in_turns(&[&ours, &list], runs.min(20))?;
    let files = output(list())?.split('\0').count();
    codchi_fs::write(&flake, before)?;
    timed(host.codchi(&["rebuild", name]))?;
    Ok(vec![Figure {
        name: format!("the same, an input of {files} files"),
        ours: times[0],
        beside: Some(("git ls-files".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Most(100.0),
    }])
}

fn init(host: &mut Host) -> Result<Vec<Figure>, Error> {
    let began = Instant::now();
    let most = peak(host.init(MACHINE, &[])?)?;
    let took = began.elapsed();
    let fetched = peers::fetch_again(host)?;
    Ok(vec![
        Figure {
            name: "codchi init, nothing on the host".into(),
            ours: ms(took),
            beside: Some((
                format!("fetch of {} files", fetched.files),
                ms(fetched.took),
            )),
            unit: Unit::Ms,
            bound: Bound::More(20_000.0),
        },
        Figure {
            name: "its peak memory".into(),
            ours: most,
            beside: None,
            unit: Unit::Mb,
            bound: Bound::Most(50.0),
        },
        Figure {
            name: "bytes fetched".into(),
            ours: fetched.bytes / 1e6,
            beside: None,
            unit: Unit::Mb,
            bound: Bound::None,
        },
    ])
}

fn second(host: &mut Host) -> Result<Vec<Figure>, Error> {
    host.machine()?;
    let machines = host.data().join("machines");
    let store = host.data().join("store");
    let before = host.bytes(&store, None)?;
    let name = "bench-second";
    let took = timed(host.init(name, &[])?)?;
    let more = host.bytes(&store, None)? - before;
    let root = host.bytes(&machines.join(name).join("root"), Some("var/log"))?;
    let figure = |name: &str, ours, unit, bound| Figure {
        name: name.into(),
        ours,
        beside: None,
        unit,
        bound,
    };
    Ok(vec![
        figure(
            "a second machine of the module",
            ms(took),
            Unit::Ms,
            Bound::Most(2000.0),
        ),
        figure(
            "its store and root",
            (more + root) / 1e6,
            Unit::Mb,
            Bound::Most(3.0),
        ),
    ])
}

fn memory(host: &mut Host) -> Result<Vec<Figure>, Error> {
    let name = host.machine()?;
    let figure = |name: String, ours, most| Figure {
        name,
        ours,
        beside: None,
        unit: Unit::Mb,
        bound: Bound::Most(most),
    };
    let mut figures = Vec::new();
    let flake = host
        .scratch(".config/codchi/machines")
        .join(name)
        .join("flake.nix");
    for (what, args) in [
        ("exec", &["exec", name, "--", "true"][..]),
        ("status", &["status"]),
        ("rebuild", &["rebuild", name]),
    ] {
        if what == "rebuild" {
            // A line more is a change: everything is evaluated again.
            let text = codchi_fs::read_to_string(&flake)?;
            codchi_fs::write(&flake, format!("# once more\n{text}"))?;
        }
        figures.push(figure(
            format!("peak of codchi {what}"),
            peak(host.codchi(args))?,
            50.0,
        ));
    }
    let leader = host.leader(name)?;
    figures.push(figure(
        "codchi-agent, resident".into(),
        agent(&leader)?,
        3.0,
    ));
    Ok(figures)
}

/// Largest resident memory of one process, not of its children, in millions of bytes.
fn peak(mut command: Command) -> Result<f64, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| Error::Run {
            program: program.clone(),
            source,
        })?;
    let mut most: f64 = 0.0;
    loop {
        most = most.max(field(&child.id().to_string(), "VmHWM:").unwrap_or(0.0));
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_micros(500)),
            Ok(Some(status)) if status.success() => return Ok(most),
            Ok(Some(status)) => {
                return Err(Error::Not(format!("`{program}` failed with {status}")));
            }
            Err(source) => return Err(Error::Run { program, source }),
        }
    }
}

/// A field of /proc/PID/status, in millions of bytes.
fn field(pid: &str, name: &str) -> Option<f64> {
    let text = codchi_fs::read_to_string(Path::new("/proc").join(pid).join("status")).ok()?;
    let kb: f64 = text
        .lines()
        .find_map(|l| l.strip_prefix(name))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    Some(kb * 1024.0 / 1e6)
}

/// Resident memory of the listener in a machine: the agent's first process, not a session.
fn agent(leader: &str) -> Result<f64, Error> {
    let namespace = |pid: &str| {
        codchi_fs::read_link_if_exists(format!("/proc/{pid}/ns/pid"))
            .ok()
            .flatten()
    };
    let own = namespace(leader);
    let mut all: Vec<u32> = Vec::new();
    for entry in codchi_fs::read_dir("/proc")? {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let comm = codchi_fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() == "codchi-agent" && namespace(&pid) == own {
            all.extend(pid.parse::<u32>().ok());
        }
    }
    let first = all
        .into_iter()
        .min()
        .ok_or_else(|| Error::Not("the machine runs no agent".into()))?;
    field(&first.to_string(), "VmRSS:")
        .ok_or_else(|| Error::Not("the agent's memory cannot be read".into()))
}

fn start(host: &mut Host) -> Result<Vec<Figure>, Error> {
    let name = host.machine()?;
    let toplevel =
        output(host.codchi(&["exec", name, "--", "readlink", "-f", "/run/current-system"]))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let nspawn = peers::Nspawn::prepare(host, &toplevel)?;
    for round in 0..4 {
        timed(host.codchi(&["stop", name]))?;
        let began = Instant::now();
        timed(host.codchi(&["start", name]))?;
        let took = began.elapsed();
        let other = nspawn.boot()?;
        // The first boot of each fills its root.
        if round > 0 {
            ours.push(ms(took));
            theirs.push(ms(other));
        }
    }
    Ok(vec![Figure {
        name: format!("codchi start {name}"),
        ours: median(ours),
        beside: Some(("systemd-nspawn".into(), median(theirs))),
        unit: Unit::Ms,
        bound: Bound::Times(1.15),
    }])
}
