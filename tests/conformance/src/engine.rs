//! Engines that the suite starts for itself, so that nothing of the host is used or touched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::process::Signal;

use crate::host::run;

/// What an engine is called, and how it is used by hand.
#[derive(Debug)]
pub struct Kind {
    /// The driver's name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Its client.
    pub client: &'static str,
    /// What of the client makes an instance.
    pub create: &'static str,
    /// The variable that says where the daemon's folder is, and that of the client's settings.
    variables: (&'static str, &'static str),
    /// Waits for the daemon.
    wait: &'static [&'static str],
    /// Takes its first settings from standard input.
    preseed: &'static [&'static str],
}

/// The engines there are.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "incus",
        title: "Incus",
        client: "incus",
        create: "create",
        variables: ("INCUS_DIR", "INCUS_CONF"),
        wait: &["incus", "admin", "waitready", "--timeout", "1"],
        preseed: &["incus", "admin", "init", "--preseed"],
    },
    Kind {
        name: "lxd",
        title: "LXD",
        client: "lxc",
        create: "init",
        variables: ("LXD_DIR", "LXD_CONF"),
        wait: &["lxd", "waitready", "--timeout", "1"],
        preseed: &["lxd", "init", "--preseed"],
    },
];

/// How long a daemon may take to be ready.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running engine.
pub struct Engine {
    kind: &'static Kind,
    daemon: Child,
    repo: PathBuf,
    dir: PathBuf,
}

impl Engine {
    /// The folder of the engine that goes with a home.
    pub fn place(home: &Path, name: &str) -> PathBuf {
        let mut place = home.as_os_str().to_owned();
        place.push(format!("-{name}"));
        place.into()
    }

    /// Starts a daemon in `dir`, with a storage pool.
    pub fn start(kind: &'static Kind, repo: &Path, dir: PathBuf) -> Result<Engine, Failed> {
        let engine = Engine::empty(kind, repo, dir)?;
        engine.command(&["storage", "create", "default", "dir"])?;
        Ok(engine)
    }

    /// Starts a daemon in `dir`, with nothing in it.
    fn empty(kind: &'static Kind, repo: &Path, dir: PathBuf) -> Result<Engine, Failed> {
        let daemon = spawn(kind, repo, &dir)?;
        let mut engine = Engine {
            kind,
            daemon,
            repo: repo.into(),
            dir,
        };
        engine.wait_until_ready()?;
        Ok(engine)
    }

    /// A cluster of as many members as folders, called `m1`, `m2` and so on, with a storage pool. Each has an address of its own on
    /// the loopback.
    pub fn cluster(&self, dirs: &[PathBuf]) -> Result<Vec<Engine>, Failed> {
        let net = std::process::id() % 250 + 1;
        let address = |n: usize| format!("127.88.{net}.{n}:8443");
        let mut members: Vec<Engine> = Vec::new();
        for (n, dir) in (1..).zip(dirs) {
            let member = Engine::empty(self.kind, &self.repo, dir.clone())?;
            let cluster = match members.first() {
                None => serde_json::json!({
                    "config": { "core.https_address": address(n) },
                    "cluster": { "enabled": true, "server_name": "m1" },
                    "storage_pools": [{ "name": "default", "driver": "dir" }],
                }),
                Some(first) => {
                    let name = format!("m{n}");
                    let token = first.command(&["cluster", "add", &name, "--quiet"])?;
                    let token = token.lines().last().ok_or("there is no token")?.to_string();
                    let source = serde_json::json!({ "entity": "storage-pool", "name": "default", "key": "source", "value": "" });
                    serde_json::json!({ "cluster": {
                        "enabled": true,
                        "server_name": name,
                        "server_address": address(n),
                        "cluster_token": token,
                        "member_config": [source],
                    } })
                }
            };
            // JSON is YAML.
            member.run(self.kind.preseed, cluster.to_string().as_bytes())?;
            members.push(member);
        }
        Ok(members)
    }

    /// Another one of the same kind, in a folder of its own.
    pub fn another(&self, dir: PathBuf) -> Result<Engine, Failed> {
        Engine::start(self.kind, &self.repo, dir)
    }

    fn wait_until_ready(&mut self) -> Result<(), Failed> {
        let end = Instant::now() + PATIENCE;
        let (program, args) = self
            .kind
            .wait
            .split_first()
            .ok_or("nothing waits for the daemon")?;
        loop {
            let ready = Command::new(program)
                .args(args)
                .env(self.kind.variables.0, &self.dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            if ready.success() {
                return Ok(());
            }
            if self.daemon.try_wait()?.is_some() || Instant::now() > end {
                let said =
                    codchi_fs::read_to_string(Engine::place(&self.dir, "out")).unwrap_or_default();
                return Err(format!("the daemon does not start: {said}").into());
            }
        }
    }

    /// What it is.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// Where its client and Codchi find it.
    pub fn environment(&self) -> (&'static str, &Path) {
        (self.kind.variables.0, &self.dir)
    }

    /// The variable that says where its client keeps what it knows.
    pub fn client_variable(&self) -> &'static str {
        self.kind.variables.1
    }

    /// The client with these arguments; anything but success is a failure.
    pub fn command(&self, args: &[&str]) -> Result<String, Failed> {
        self.run(&[&[self.kind.client], args].concat(), b"")
    }

    fn run(&self, command: &[&str], input: &[u8]) -> Result<String, Failed> {
        let (program, args) = command.split_first().ok_or("there is no command")?;
        let mut c = Command::new(program);
        c.args(args)
            .env(self.kind.variables.0, &self.dir)
            .env(self.kind.variables.1, Engine::place(&self.dir, "client"));
        Ok(run(&mut c, input)?.ok()?.text())
    }

    /// Ends the daemon, its instances go on; and starts it again.
    pub fn pause<T>(
        &mut self,
        meanwhile: impl FnOnce(&Engine) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        self.signal(Signal::TERM);
        self.daemon.wait()?;
        let done = meanwhile(self);
        self.daemon = spawn(self.kind, &self.repo, &self.dir)?;
        self.wait_until_ready()?;
        done
    }

    fn signal(&self, signal: Signal) {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.daemon), signal);
    }
}

fn spawn(kind: &Kind, repo: &Path, dir: &Path) -> Result<Child, Failed> {
    let log = codchi_fs::create(Engine::place(dir, "out"))?;
    Ok(Command::new(repo.join("tests/engine-host"))
        .arg(kind.name)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.signal(Signal::POWER);
        let _ = self.daemon.wait();
        let _ = codchi_fs::remove_dir_all(&self.dir);
        let _ = codchi_fs::remove_dir_all(Engine::place(&self.dir, "client"));
        for file in ["out", "log"] {
            let _ = codchi_fs::remove_if_exists(Engine::place(&self.dir, file));
        }
    }
}

/// A libvirt of the suite's own.
pub struct Libvirt {
    daemon: Child,
    repo: PathBuf,
    dir: PathBuf,
}

impl Libvirt {
    /// Starts its daemon in `dir`.
    pub fn start(repo: &Path, dir: PathBuf) -> Result<Libvirt, Failed> {
        let daemon = Libvirt::spawn(repo, &dir)?;
        let mut libvirt = Libvirt {
            daemon,
            repo: repo.into(),
            dir,
        };
        libvirt.wait_until_ready()?;
        Ok(libvirt)
    }

    fn spawn(repo: &Path, dir: &Path) -> Result<Child, Failed> {
        codchi_fs::create_dir_all(dir)?;
        let said = codchi_fs::create(Engine::place(dir, "out"))?;
        let mut c = Command::new(repo.join("tests/engine-host"));
        c.arg("libvirt").arg(dir).stdin(Stdio::null());
        Ok(c.stdout(said.try_clone()?).stderr(said).spawn()?)
    }

    fn wait_until_ready(&mut self) -> Result<(), Failed> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut asks = Command::new("virsh");
            asks.args(["--connect", &self.uri(), "version"])
                .stdin(Stdio::null());
            if asks
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?
                .success()
            {
                return Ok(());
            }
            if self.daemon.try_wait()?.is_some() || Instant::now() > end {
                let said =
                    codchi_fs::read_to_string(Engine::place(&self.dir, "out")).unwrap_or_default();
                return Err(format!("the daemon does not start: {said}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it is reached.
    pub fn uri(&self) -> String {
        format!(
            "qemu+unix:///system?socket={}/libvirt-sock",
            self.dir.display()
        )
    }

    /// Ends the daemon, and starts it again.
    pub fn pause<T>(&mut self, meanwhile: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
        self.end();
        let done = meanwhile();
        self.daemon = Libvirt::spawn(&self.repo, &self.dir)?;
        self.wait_until_ready()?;
        done
    }

    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let _ = self.daemon.wait();
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.end();
        let _ = codchi_fs::remove_dir_all(&self.dir);
        let _ = codchi_fs::remove_if_exists(Engine::place(&self.dir, "out"));
    }
}
