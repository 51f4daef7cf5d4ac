//! What the figures stand beside: other engines, and the network itself.

use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::figures::which;
use crate::host::Host;
use crate::measure::{median, ms, output, timed};

/// How long a container of a peer lives at most, in seconds: longer than any measurement.
const LIFE: &str = "1000";
/// Connections at once, as Codchi itself opens.
const CONNECTIONS: &str = "8";
/// How long a boot may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running container of another engine.
pub struct Peer {
    /// What is measured.
    pub name: &'static str,
    enter: Vec<String>,
    end: Vec<String>,
}

impl Peer {
    /// The middle of several runs of `true` in it.
    pub fn median(&self, runs: usize) -> Result<f64, Error> {
        let mut times = Vec::new();
        for _ in 0..runs {
            times.push(ms(timed(command(&self.enter))?));
        }
        Ok(median(times))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(e) = timed(command(&self.end)) {
            eprintln!("{}: not removed: {e}", self.name);
        }
    }
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.args(words.iter().skip(1));
    command
}

/// Containers of every engine that is installed, over one root that holds the host's `true` and `sleep`.
pub fn all(host: &Host) -> Result<Vec<Peer>, Error> {
    let root = host.scratch("peer-root");
    let copy = r#"
        mkdir -p "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/etc" "$1/run"
        for program in /bin/true /bin/sleep; do
          for file in "$program" $(ldd "$program" | grep -o '/[^ )]*'); do
            mkdir -p "$1$(dirname "$file")"
            cp -L "$file" "$1$file"
          done
        done
    "#;
    let mut sh = Command::new("sh");
    sh.args(["-ec", copy, "sh"]).arg(&root);
    timed(sh)?;
    let mut peers = Vec::new();
    for (program, start) in [
        ("crun", crun as fn(&Host, &Path) -> Result<Peer, Error>),
        ("podman", podman),
        ("lxc-attach", lxc),
    ] {
        if which(program).is_err() {
            continue;
        }
        match start(host, &root) {
            Ok(peer) => peers.push(peer),
            Err(e) => eprintln!("{program}: not measured: {e}"),
        }
    }
    Ok(peers)
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| w.to_string()).collect()
}

fn crun(host: &Host, root: &Path) -> Result<Peer, Error> {
    let bundle = host.scratch("crun");
    codchi_fs::create_dir_all(&bundle)?;
    let mut spec = Command::new("crun");
    timed({
        spec.arg("spec").current_dir(&bundle);
        spec
    })?;
    let file = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(&file)?)
        .map_err(|e| Error::Not(format!("crun's own settings: {e}")))?;
    config["process"]["args"] = serde_json::json!(["/bin/sleep", LIFE]);
    config["process"]["terminal"] = false.into();
    config["root"]["path"] = root.to_string_lossy().into();
    codchi_fs::write(&file, config.to_string())?;
    let state = host.scratch("crun-state").to_string_lossy().into_owned();
    let name = format!("codchi-bench-{}", std::process::id());
    let crun = ["crun", "--root", &state, "--cgroup-manager", "disabled"];
    let mut run = words(&crun);
    run.extend(words(&[
        "run",
        "--detach",
        "--bundle",
        &bundle.to_string_lossy(),
        &name,
    ]));
    detached(&run)?;
    Ok(Peer {
        name: "crun exec",
        enter: [words(&crun), words(&["exec", &name, "/bin/true"])].concat(),
        end: [words(&crun), words(&["delete", "--force", &name])].concat(),
    })
}

fn podman(host: &Host, root: &Path) -> Result<Peer, Error> {
    let at = |name: &str| host.scratch(name).to_string_lossy().into_owned();
    let (store, state) = (at("podman"), at("podman-run"));
    let name = format!("codchi-bench-{}", std::process::id());
    let podman = [
        "podman",
        "--root",
        &store,
        "--runroot",
        &state,
        "--cgroup-manager",
        "cgroupfs",
    ];
    let run = [
        "run",
        "--detach",
        "--name",
        &name,
        "--network=none",
        "--cgroups=disabled",
        "--pids-limit=0",
    ];
    let limits = [
        "--ulimit",
        "nofile=4096:4096",
        "--ulimit",
        "nproc=4096:4096",
        "--rootfs",
    ];
    let root = root.to_string_lossy();
    let all = [&podman[..], &run, &limits, &[&root, "/bin/sleep", LIFE]].concat();
    detached(&words(&all))?;
    Ok(Peer {
        name: "podman exec",
        enter: words(&[&podman[..], &["exec", &name, "/bin/true"]].concat()),
        end: words(&[&podman[..], &["rm", "--force", "--time", "0", &name]].concat()),
    })
}

fn lxc(host: &Host, root: &Path) -> Result<Peer, Error> {
    let dir = host.scratch("lxc");
    let name = format!("codchi-bench-{}", std::process::id());
    codchi_fs::create_dir_all(dir.join(&name))?;
    let config = format!(
        "lxc.uts.name = bench\nlxc.rootfs.path = dir:{}\nlxc.net.0.type = empty\nlxc.init.cmd = /bin/sleep {LIFE}\n",
        root.display()
    );
    codchi_fs::write(dir.join(&name).join("config"), config)?;
    let path = dir.to_string_lossy().into_owned();
    detached(&words(&["lxc-start", "-P", &path, "-n", &name, "-d"]))?;
    Ok(Peer {
        name: "lxc-attach",
        enter: words(&["lxc-attach", "-P", &path, "-n", &name, "--", "/bin/true"]),
        end: words(&["lxc-stop", "-k", "-P", &path, "-n", &name]),
    })
}

/// Starts what stays in the background; its streams would keep a pipe of ours open.
fn detached(words: &[String]) -> Result<(), Error> {
    let mut command = command(words);
    let text = words.join(" ");
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Failed {
            command: text,
            status: status.to_string(),
            said: String::new(),
        }),
        Err(source) => Err(Error::Run {
            program: text,
            source,
        }),
    }
}

/// A plain fetch of what Codchi fetched.
pub struct Fetched {
    /// How many files.
    pub files: usize,
    /// How large together.
    pub bytes: f64,
    /// How long it took.
    pub took: Duration,
}

/// Fetches all that lies in Codchi's cache once more, in parallel, and throws it away.
pub fn fetch_again(host: &Host) -> Result<Fetched, Error> {
    let lists = host.cache().join("lists");
    let mirror = mirror()?;
    let archive = |name: &str| match name {
        "debian-security" => {
            std::env::var("CODCHI_BASE_SECURITY_MIRROR").unwrap_or(format!("{mirror}-security"))
        }
        _ => mirror.clone(),
    };
    let here = match std::env::consts::ARCH {
        "x86_64" => "/binary-amd64/",
        "aarch64" => "/binary-arm64/",
        other => {
            return Err(Error::Not(format!(
                "Debian's name for {other} is not known here"
            )));
        }
    };
    // What the mirror calls each file: packages by the beginning of their hash and by their name.
    let mut known: HashMap<String, String> = HashMap::new();
    let mut urls = Vec::new();
    let mut bytes = 0.0;
    let mut add = |url: String, file: &Path| {
        bytes += rustix::fs::stat(file).map_or(0.0, |s| s.st_size as f64);
        urls.push(url);
    };
    for entry in codchi_fs::read_dir(&lists)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let [archive_name, suite, "InRelease"] = name.split('_').collect::<Vec<_>>()[..] else {
            continue;
        };
        let base = archive(archive_name);
        add(format!("{base}/dists/{suite}/InRelease"), &entry.path());
        for line in codchi_fs::read_to_string(entry.path())?.lines() {
            let [hash, _, path] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                continue;
            };
            let file = lists.join("by-hash").join(hash);
            if hash.len() != 64 || !path.contains(here) || !file.exists() {
                continue;
            }
            let folder = Path::new(path)
                .parent()
                .unwrap_or(Path::new(""))
                .display()
                .to_string();
            add(
                format!("{base}/dists/{suite}/{folder}/by-hash/SHA256/{hash}"),
                &file,
            );
            let mut xz = Command::new("xz");
            xz.arg("-dc").arg(&file);
            let mut pool = String::new();
            for line in output(xz)?.lines() {
                if let Some(name) = line.strip_prefix("Filename: ") {
                    pool = format!("{base}/{name}");
                    let leaf = name.rsplit('/').next().unwrap_or(name);
                    known.insert(leaf.into(), pool.clone());
                } else if let Some(hash) = line.strip_prefix("SHA256: ") {
                    known.insert(hash.chars().take(16).collect(), pool.clone());
                }
            }
        }
    }
    for entry in codchi_fs::read_dir(host.cache().join("debs"))? {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Named by their hash, whole or its beginning.
        let hash: String = name.chars().take(16).collect();
        let url = known.get(&hash).or_else(|| known.get(&name));
        add(
            url.ok_or_else(|| Error::Not(format!("no list names `{name}`")))?
                .clone(),
            &entry.path(),
        );
    }
    // Those of the machine itself are in the store, and their derivations know where they come from.
    let store = host.data().join("store/nix/store");
    for entry in if store.exists() {
        codchi_fs::read_dir(&store)?
    } else {
        Vec::new()
    } {
        if !entry.file_name().to_string_lossy().ends_with(".deb.drv") {
            continue;
        }
        let text = codchi_fs::read_to_string(entry.path())?;
        let field = |before: &str| {
            text.split_once(before)
                .and_then(|(_, rest)| rest.split('"').next())
        };
        let (Some(out), Some(url)) = (
            field("(\"out\",\"/nix/store/"),
            field("(\"mirror\",\"mirror://"),
        ) else {
            continue;
        };
        let file = store.join(out);
        if let (Some((name, path)), true) = (url.split_once('/'), file.exists()) {
            add(format!("{}/{path}", archive(name)), &file);
        }
    }
    let config = host.scratch("urls");
    let text: String = urls
        .iter()
        .map(|u| format!("url = \"{u}\"\noutput = \"/dev/null\"\n"))
        .collect();
    codchi_fs::write(&config, text)?;
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "-Z", "--parallel-max", CONNECTIONS, "-K"])
        .arg(&config);
    Ok(Fetched {
        files: urls.len(),
        bytes,
        took: timed(curl)?,
    })
}

/// The mirror as Codchi finds it: what is set, else the host's apt, else Debian's.
fn mirror() -> Result<String, Error> {
    if let Ok(mirror) = std::env::var("CODCHI_BASE_MIRROR") {
        return Ok(mirror.trim_end_matches('/').into());
    }
    let find = "cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null \
                | grep -v '^#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1";
    let mut sh = Command::new("sh");
    sh.args(["-c", find]);
    let found = output(sh)?;
    let found = found.trim().trim_end_matches('/');
    Ok(if found.is_empty() {
        "http://deb.debian.org/debian".into()
    } else {
        found.into()
    })
}

/// systemd-nspawn over a root of its own and the same store.
pub struct Nspawn {
    root: PathBuf,
    agent: PathBuf,
    store: PathBuf,
    bin: PathBuf,
    notify: PathBuf,
    cgroups: Vec<PathBuf>,
    toplevel: String,
}

impl Nspawn {
    /// Makes the root; the machine's first boot fills it.
    pub fn prepare(host: &Host, toplevel: &str) -> Result<Nspawn, Error> {
        which("systemd-nspawn")?;
        let own = host.data().join("store/nix/store");
        let store = if own.exists() {
            own
        } else {
            "/nix/store".into()
        };
        let (root, agent) = (host.scratch("nspawn"), host.scratch("nspawn-agent"));
        for dir in [
            "nix/store",
            "etc",
            "usr",
            "var",
            "tmp",
            "root",
            "home",
            "proc",
            "sys",
            "dev",
            "run",
        ] {
            codchi_fs::create_dir_all(root.join(dir))?;
        }
        codchi_fs::create_dir_all(&agent)?;
        // Where the host runs cgroup v1 beside cgroup2, systemd's own hierarchy is of both.
        let hybrid = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"].map(PathBuf::from);
        let parents = if hybrid[0].exists() {
            hybrid.to_vec()
        } else {
            vec!["/sys/fs/cgroup".into()]
        };
        let cgroups: Vec<_> = parents
            .into_iter()
            .map(|p| p.join(format!("codchi-bench-{}", std::process::id())))
            .collect();
        for dir in &cgroups {
            codchi_fs::create_dir_all(dir)?;
        }
        Ok(Nspawn {
            root,
            agent,
            store,
            bin: host.data().join("bin"),
            notify: host.scratch("nspawn-notify"),
            cgroups,
            toplevel: toplevel.into(),
        })
    }

    /// Boots it to READY=1, and shuts it down again.
    pub fn boot(&self) -> Result<Duration, Error> {
        codchi_fs::remove_if_exists(&self.notify)?;
        let run = |source| Error::Run {
            program: "systemd-nspawn".into(),
            source,
        };
        let socket = UnixDatagram::bind(&self.notify).map_err(run)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(run)?;
        let join: String = self
            .cgroups
            .iter()
            .map(|c| format!("echo 0 > {}/cgroup.procs; ", c.display()))
            .collect();
        let bind = |from: &Path, to: &str| format!("{}:{to}", from.display());
        let began = Instant::now();
        let child = Command::new("sh")
            .args([
                "-c",
                &format!("{join} exec systemd-nspawn \"$@\""),
                "sh",
                "--quiet",
                "-D",
            ])
            .arg(&self.root)
            .args([
                "--private-users=pick",
                "--private-users-ownership=map",
                "--private-network",
            ])
            .args([
                "--register=no",
                "--keep-unit",
                "--console=pipe",
                "--notify-ready=yes",
            ])
            .args(["--kill-signal=SIGRTMIN+3", "--machine=codchi-bench"])
            .arg(format!(
                "--bind-ro={}",
                bind(&self.store, "/nix/store:idmap")
            ))
            .arg(format!("--bind-ro={}", bind(&self.bin, "/run/codchi/bin")))
            .arg(format!(
                "--bind={}",
                bind(&self.agent, "/run/codchi/agent:idmap")
            ))
            .arg(format!("{}/init", self.toplevel))
            .env("NOTIFY_SOCKET", &self.notify)
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(run)?;
        let took = self.ready(&socket).map(|()| began.elapsed());
        end(child)?;
        took
    }

    fn ready(&self, socket: &UnixDatagram) -> Result<(), Error> {
        let mut buffer = [0; 4096];
        loop {
            let n = socket
                .recv(&mut buffer)
                .map_err(|_| Error::Not("systemd-nspawn does not become ready".into()))?;
            if buffer[..n]
                .split(|b| *b == b'\n')
                .any(|line| line == b"READY=1")
            {
                return Ok(());
            }
        }
    }
}

/// Asks nspawn to power its machine off, and kills it when it does not.
fn end(mut child: Child) -> Result<(), Error> {
    let pid = Pid::from_child(&child);
    let _ = kill_process(pid, Signal::TERM);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(Error::Not("systemd-nspawn had to be killed".into()))
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        for dir in &self.cgroups {
            let mut find = Command::new("find");
            find.arg(dir)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .stderr(Stdio::null());
            let _ = timed(find);
        }
    }
}
