//! The machines: `mallory` attacks, `alice` is attacked, and `open` is `mallory` with its guards taken away.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engine::Engine;
use crate::host::{Done, Host, Kind, run};
use crate::require;

/// The machine that attacks.
pub const MALLORY: &str = "mallory";
/// The machine that is attacked.
pub const ALICE: &str = "alice";
/// The machine without guards; on virtual machines, the person in the store's own namespace.
pub const OPEN: &str = "open";
/// Where the helper lies in the machines.
pub const HELPER: &str = "/opt/attempt";
/// Where `open` has a mount that its own root made.
pub const OWN_MOUNT: &str = "/opt/own";

/// As whom an attempt is made in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The machine's root.
    Root,
    /// The machine's user.
    User,
}

impl Who {
    /// For names of tests.
    pub fn as_str(self) -> &'static str {
        match self {
            Who::Root => "root",
            Who::User => "user",
        }
    }
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Verdict {
    /// The attack succeeded.
    Done(String),
    /// It did not.
    Refused(String),
    /// There is nothing to attack on this host.
    Absent(String),
}

impl Verdict {
    /// What was said of it.
    pub fn said(&self) -> &str {
        let (Verdict::Done(s) | Verdict::Refused(s) | Verdict::Absent(s)) = self;
        s
    }
}

/// Where an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this machine.
    Machine(&'static str),
    /// On the host, as its root: there no guard of ours is.
    Host,
}

/// Everything the attempts share.
pub struct Stage {
    /// The host and its person.
    pub host: Host,
    /// The helper, on the host.
    pub helper: PathBuf,
    keep: bool,
    made: OnceLock<Result<Made, String>>,
    opened: OnceLock<Result<(), String>>,
}

/// What is known once the machines run.
pub struct Made {
    /// The store's files, as the host's root reads them.
    pub store: PathBuf,
    /// A path of the store that only `alice` holds, as machines name it.
    pub victim: String,
    /// The folder of its system there.
    pub folder: String,
}

impl Stage {
    /// A host in `home`.
    pub fn new(
        which: &str,
        home: PathBuf,
        repo: PathBuf,
        program: PathBuf,
    ) -> Result<Stage, Failed> {
        let target = repo.join("rust/target/attempt");
        let helper = target.join("debug/codchi-attempt");
        let host = Host::new(which, home, repo, program)?;
        let keep = std::env::var_os("CODCHI_TEST_HOME").is_some();
        Ok(Stage {
            host,
            helper,
            keep,
            made: OnceLock::new(),
            opened: OnceLock::new(),
        })
    }

    /// Makes the machines, once.
    pub fn ready(&self) -> Result<&Made, Failed> {
        let made = self.made.get_or_init(|| {
            self.make()
                .map_err(|e| e.message().unwrap_or("no reason given").to_string())
        });
        made.as_ref()
            .map_err(|e| format!("the machines could not be made: {e}").into())
    }

    /// Puts limits into a module.
    fn bounded(&self, project: PathBuf) -> Result<PathBuf, Failed> {
        let file = project.join("module.nix");
        let text = codchi_fs::read_to_string(&file)?;
        let tasks = "codchi.resources.tasks = 3000;";
        require(text.contains(tasks), "the fixture's module looks otherwise")?;
        let more = format!("{tasks}\n  codchi.resources.memory = \"2G\";");
        codchi_fs::write(&file, text.replacen(tasks, &more, 1))?;
        self.host.commit(&project)?;
        Ok(project)
    }

    fn make(&self) -> Result<Made, Failed> {
        let h = &self.host;
        let manifest = h.repo.join("rust/Cargo.toml");
        let target = h.repo.join("rust/target/attempt");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([
            "rustc",
            "--quiet",
            "--locked",
            "-p",
            "codchi-attempt",
            "--bin",
            "codchi-attempt",
        ]);
        cargo
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(target);
        cargo.args([
            "--",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
        ]);
        run(&mut cargo, b"")?.ok()?;
        let again = h.home.join(".config/codchi/machines").join(ALICE).exists();
        let repo = if again {
            h.home.join("project")
        } else {
            self.bounded(h.checkout("tests/fixtures/conformance", "project")?)?
        };
        let repo = repo.to_string_lossy().into_owned();
        let init = |name: &str, more: &[&str]| -> Result<(), Failed> {
            if again {
                return Ok(());
            }
            let mut words = vec![
                "init",
                name,
                &repo,
                "--driver",
                h.driver,
                "--no-init-script",
            ];
            words.extend(more);
            let mut c = h.codchi_command(&words);
            c.env(crate::daemon::VARIABLE, crate::daemon::WORD);
            run(&mut c, b"")?.ok()?;
            Ok(())
        };
        init(MALLORY, &[])?;
        init(ALICE, &[])?;
        if h.driver != "qemu" {
            init(OPEN, &["--no-start"])?;
        }
        let put = "umask 022; mkdir -p /opt; cat > /opt/attempt; chmod 755 /opt/attempt";
        let helper = codchi_fs::read(&self.helper)?;
        h.codchi_with(
            &["exec", "-u", "root", MALLORY, "--", "sh", "-c", put],
            &helper,
        )?
        .ok()?;
        h.root_sh(
            ALICE,
            "echo alices > /etc/keep; echo alices > /etc/private; chmod 600 /etc/private",
        )?;
        h.sh(ALICE, "echo alices > ~/keep")?;
        let build = crate::daemon::expression("alices");
        let victim = h.sh(
            ALICE,
            &format!("nix-build -o ~/result -E {}", crate::daemon::quote(&build)),
        )?;
        let folder = h.status(ALICE)?["toplevel"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        let secret = h.home.join("public-secret");
        codchi_fs::write(&secret, "the host's\n")?;
        codchi_fs::set_mode(&secret, 0o644)?;
        codchi_fs::set_mode(&h.home, 0o755)?;
        let made = Made {
            store: h.home.join(".local/share/codchi/store/nix/store"),
            victim,
            folder,
        };
        require(
            made.store.is_dir(),
            format!("no store at `{}`", made.store.display()),
        )?;
        Ok(made)
    }

    /// Starts `open`: the supervisor of the program under test, told by this suite to leave its guards out.
    pub fn open(&self) -> Result<(), Failed> {
        let opened = self.opened.get_or_init(|| {
            self.make_open()
                .map_err(|e| e.message().unwrap_or("no reason given").to_string())
        });
        opened
            .clone()
            .map_err(|e| format!("`open` does not start: {e}").into())
    }

    fn make_open(&self) -> Result<(), Failed> {
        let h = &self.host;
        if h.driver == "qemu" {
            // What is without a machine's guards there is the person: `run`.
            return Ok(());
        }
        let trusted = crate::daemon::trusted(self)?;
        if h.status(OPEN)?["state"] == "running" {
            return Ok(());
        }
        match h.driver {
            "native" | "oci" => self.make_open_native(&trusted)?,
            "incus" => self.make_open_incus(&trusted)?,
            other => return Err(format!("no machine without guards is known for `{other}`").into()),
        }
        let put = "umask 022; mkdir -p /opt; cat > /opt/attempt; chmod 755 /opt/attempt";
        let helper = codchi_fs::read(&self.helper)?;
        h.codchi_with(
            &["exec", "-u", "root", OPEN, "--", "sh", "-c", put],
            &helper,
        )?
        .ok()?;
        Ok(())
    }

    /// A copy of the programs that belongs to the machine, where the host's own would be.
    fn open_programs(&self, from: &Path) -> Result<PathBuf, Failed> {
        let bin = self.host.home.join("open-bin");
        codchi_fs::create_dir_all(&bin)?;
        for e in codchi_fs::read_dir(from)? {
            run(Command::new("cp").arg(e.path()).arg(&bin), b"")?.ok()?;
        }
        self.give(&bin)?;
        Ok(bin)
    }

    /// The instance of the engine, as a person could configure it who wants no guards.
    fn make_open_incus(&self, trusted: &Path) -> Result<(), Failed> {
        let h = &self.host;
        // Its settings are given to it by its first start.
        h.codchi(&["start", OPEN])?.ok()?;
        h.codchi(&["stop", OPEN])?.ok()?;
        let text = codchi_fs::read_to_string(self.runtime(MALLORY).join("spec.json"))?;
        let launch: Value = serde_json::from_str(&text)?;
        let bin = self.open_programs(Path::new(launch["bin"].as_str().ok_or("no bin")?))?;
        let home = format!("source={}", h.home.display());
        let at = format!("path={}", h.home.display());
        let engine = h.engine()?;
        let raw = engine.command(&["config", "get", OPEN, "raw.lxc"])?;
        let own = OWN_MOUNT.trim_start_matches('/');
        let raw = format!("raw.lxc={raw}\nlxc.mount.entry = tmpfs {own} tmpfs ro,create=dir 0 0");
        engine.command(&["config", "set", OPEN, &raw])?;
        engine.command(&["config", "set", OPEN, "security.syscalls.deny="])?;
        for limit in ["limits.processes", "limits.kernel.nproc"] {
            engine.command(&["config", "unset", OPEN, limit])?;
        }
        engine.command(&["config", "device", "set", OPEN, "store", "readonly=false"])?;
        for (device, source) in [("bin", bin.as_path()), ("endpoint", trusted)] {
            let source = format!("source={}", source.display());
            let words = [
                "config",
                "device",
                "set",
                OPEN,
                device,
                &source,
                "readonly=false",
                "shift=true",
            ];
            engine.command(&words)?;
        }
        // The person's whole home and the other machine, at their places; and what a forged manifest asks for.
        let words = [
            "config",
            "device",
            "add",
            OPEN,
            "home",
            "disk",
            &home,
            &at,
            "shift=true",
        ];
        engine.command(&words)?;
        let alice = self.root(ALICE);
        let (from, at) = (
            format!("source={}", alice.display()),
            format!("path={}", alice.display()),
        );
        engine.command(&["config", "device", "add", OPEN, "alice", "disk", &from, &at])?;
        let words = [
            "config",
            "device",
            "add",
            OPEN,
            "forged",
            "disk",
            "source=/",
            "path=/host",
            "readonly=true",
        ];
        engine.command(&words)?;
        engine.command(&["start", OPEN])?;
        Ok(())
    }

    fn make_open_native(&self, trusted: &Path) -> Result<(), Failed> {
        let h = &self.host;
        let text = codchi_fs::read_to_string(self.runtime(MALLORY).join("spec.json"))?;
        let mut launch: Value = serde_json::from_str(&text)?;
        launch["name"] = json!(OPEN);
        launch["root"] = json!(self.root(OPEN));
        launch["consoleLog"] = json!(
            h.home
                .join(".local/state/codchi/logs")
                .join(OPEN)
                .join("console.log")
        );
        if h.kind == Kind::Root {
            let host =
                codchi_fs::read_to_string(h.home.join(".config/codchi/machines/open/host.toml"))?;
            let base = host
                .lines()
                .find_map(|l| l.strip_prefix("base = ")?.parse::<u32>().ok());
            launch["uidBase"] = json!(base.ok_or("no range of ids in host.toml")?);
        } else {
            launch["userIsCaller"] = json!(true);
        }
        let engine = &mut launch["engine"];
        if engine["config"].is_object() {
            open_config(&mut engine["config"]);
        } else {
            engine["seccomp"] = json!({"errno": 1, "deny": [], "absent": []});
            engine["capabilities"]["drop"] = json!([]);
            engine["resources"]["tasks"] = json!(null);
        }
        let bin = self.open_programs(Path::new(launch["bin"].as_str().ok_or("no bin")?))?;
        let engine = &mut launch["engine"];
        let mounts = engine["mounts"].as_array_mut().ok_or("no mounts")?;
        for m in mounts.iter_mut() {
            match m["source"].as_str() {
                Some("@store@") => m["options"] = json!(["nosuid", "nodev"]),
                Some("@endpoint@") => {
                    m["source"] = json!(trusted);
                    m["options"] = json!(["nosuid", "nodev"]);
                    m["idmap"] = json!(h.kind == Kind::Root);
                }
                Some("@bin@") => {
                    m["options"] = json!(["nosuid", "nodev"]);
                    m["idmap"] = json!(h.kind == Kind::Root);
                }
                _ => {}
            }
        }
        if h.driver == "native" {
            mounts.push(json!({"kind": "tmpfs", "target": OWN_MOUNT, "options": ["ro"]}));
        }
        // The person's whole home, at its place.
        mounts.push(json!({
            "kind": "bind", "source": h.home, "target": h.home, "options": [], "idmap": h.kind == Kind::Root,
        }));
        // What a forged manifest asks for.
        mounts.push(crate::misc::forged_mount());
        launch["bin"] = json!(bin);
        let dir = self.runtime(OPEN);
        let file = h.home.join("open.json");
        codchi_fs::write(&file, serde_json::to_vec(&launch)?)?;
        run(
            h.command("mkdir").arg("-p").arg("-m").arg("700").arg(&dir),
            b"",
        )?
        .ok()?;
        let me = std::env::current_exe()?;
        let mut c = h.command(me);
        c.arg("--launch")
            .arg(&dir)
            .arg(&file)
            .arg(self.program())
            .arg(OPEN);
        run(&mut c, b"")?.ok()?;
        Ok(())
    }

    /// Gives a folder with all in it to the person.
    pub fn give(&self, dir: &Path) -> Result<(), Failed> {
        if self.host.kind == Kind::Rootless {
            let meta = std::fs::metadata(self.host.home.join("project/.git"))?;
            let owner = format!("{}:{}", meta.uid(), meta.gid());
            run(Command::new("chown").arg("-R").arg(owner).arg(dir), b"")?.ok()?;
        }
        Ok(())
    }

    /// The program under test.
    pub fn program(&self) -> PathBuf {
        let c = self.host.codchi_command(&[] as &[&str]);
        match self.host.kind {
            Kind::Root => c.get_program().into(),
            // The wrapper's user comes first.
            Kind::Rootless => c.get_args().nth(1).unwrap_or_default().into(),
        }
    }

    /// A machine's root file system, on the host.
    pub fn root(&self, machine: &str) -> PathBuf {
        let home = &self.host.home;
        if self.host.has_engine() {
            let pool = Engine::place(home, self.host.driver).join("storage-pools/default");
            return pool.join("containers").join(machine).join("rootfs");
        }
        home.join(".local/share/codchi/machines")
            .join(machine)
            .join("root")
    }

    /// A machine's runtime folder, on the host.
    pub fn runtime(&self, machine: &str) -> PathBuf {
        self.host.home.join("run/codchi/machines").join(machine)
    }

    /// The roots that the store keeps for a machine, on the host.
    pub fn roots(&self, machine: &str) -> PathBuf {
        self.host
            .home
            .join(".local/share/codchi/store/nix/var/nix/gcroots/codchi/machines")
            .join(machine)
    }

    /// Runs words at a place; the status and all it said.
    pub fn run(&self, place: Place, who: Who, words: &[&str]) -> Result<Done, Failed> {
        match place {
            Place::Host => run(Command::new(words[0]).args(&words[1..]), b""),
            Place::Machine(OPEN) if self.host.driver == "qemu" => {
                let mut all = vec!["store", "shell", "--as-root", "--"];
                all.extend(words);
                self.host.codchi(&all)
            }
            Place::Machine(name) => {
                let mut all = vec!["exec"];
                if who == Who::Root {
                    all.extend(["-u", "root"]);
                }
                all.extend([name, "--"]);
                all.extend(words);
                self.host.codchi(&all)
            }
        }
    }

    /// Runs the helper at a place.
    pub fn attempt(&self, place: Place, who: Who, words: &[&str]) -> Result<Verdict, Failed> {
        let helper = match place {
            Place::Host => self.helper.to_string_lossy().into_owned(),
            Place::Machine(OPEN) if self.host.driver == "qemu" => {
                self.helper.to_string_lossy().into_owned()
            }
            Place::Machine(_) => HELPER.into(),
        };
        let mut all = vec![helper.as_str()];
        all.extend(words);
        let done = self.run(place, who, &all)?;
        let said = done.text();
        match done.status {
            0 => Ok(Verdict::Done(said)),
            1 => Ok(Verdict::Refused(said)),
            3 => Ok(Verdict::Absent(said)),
            s => Err(format!("the attempt is broken: status {s}, {said} {}", done.err).into()),
        }
    }

    /// Everything that no attempt may change, as text by its name.
    pub fn guarded(&self) -> Result<BTreeMap<String, String>, Failed> {
        let made = self.ready()?;
        let mut all = BTreeMap::new();
        let h = &self.host;
        let base = |p: &str| made.store.join(p.rsplit('/').next().unwrap_or_default());
        let mut files = vec![
            base(&made.victim),
            h.home.join("public-secret"),
            self.root(ALICE).join("etc/private"),
            self.root(ALICE).join("home/codchi/keep"),
        ];
        for host in [
            "/etc/hostname",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/hostname",
            "/proc/sys/kernel/panic",
            "/proc/swaps",
        ] {
            files.push(host.into());
        }
        for name in [MALLORY, ALICE] {
            for file in ["flake.nix", "flake.lock", "host.toml"] {
                files.push(h.home.join(".config/codchi/machines").join(name).join(file));
            }
        }
        for name in [MALLORY, ALICE] {
            let file = self.runtime(name).join("spec.json");
            all.insert(file.display().to_string(), unnumbered(&file)?);
        }
        for file in ["/etc/passwd", "/etc/shadow"] {
            all.insert(file.into(), accounts(Path::new(file))?);
        }
        for f in files {
            all.insert(f.display().to_string(), describe(&f));
        }
        for dir in [
            h.home.join(".local/state/codchi/generations").join(MALLORY),
            h.home.join(".local/state/codchi/generations").join(ALICE),
            self.roots(ALICE),
            h.home.join(".local/share/codchi/bin"),
            self.runtime(ALICE).join("agent"),
            self.runtime(ALICE).join("daemon"),
        ] {
            let mut entries: Vec<String> = codchi_fs::read_dir(&dir)?
                .iter()
                .map(|e| describe(&e.path()))
                .collect();
            entries.sort();
            all.insert(dir.display().to_string(), entries.join("\n"));
        }
        let db = made.store.with_file_name("var").join("nix/db/db.sqlite");
        let meta = std::fs::metadata(&db)?;
        all.insert(
            "the database's owner and mode".into(),
            format!("{} {:o}", meta.uid(), meta.mode()),
        );
        for name in [MALLORY, ALICE] {
            let text = codchi_fs::read_to_string(self.runtime(name).join("supervisor.json"))?;
            let state: Value = serde_json::from_str(&text)?;
            // An attempt at a port ends with another start.
            if name == MALLORY && h.driver == "qemu" {
                all.insert(format!("{name}'s state"), state["state"].to_string());
                continue;
            }
            all.insert(
                format!("{name}'s supervisor"),
                format!("{} {}", state["pid"], state["state"]),
            );
        }
        all.insert("the host's mounts".into(), mounts_below(&h.home)?);
        all.insert("the host's clock".into(), clock());
        Ok(all)
    }

    /// Ends and removes the machines; nothing of them may be left.
    pub fn end(&self) -> Result<(), Failed> {
        if self.made.get().is_none() || self.keep {
            return Ok(());
        }
        let h = &self.host;
        for name in [OPEN, MALLORY, ALICE] {
            if h.home.join(".config/codchi/machines").join(name).exists() {
                h.codchi(&["delete", "--yes", name])?.ok()?;
            }
        }
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let left: Vec<String> = h
                .processes()
                .into_iter()
                .filter(|p| !p.contains("nix-daemon"))
                .collect();
            if left.is_empty() {
                break;
            }
            require(Instant::now() < until, format!("left behind: {left:?}"))?;
            std::thread::sleep(Duration::from_millis(100));
        }
        for name in [MALLORY, ALICE, OPEN] {
            require(
                !self.root(name).exists(),
                format!("`{}` is left", self.root(name).display()),
            )?;
        }
        Ok(())
    }
}

/// A file that counts how often it was written, without that.
pub fn unnumbered(file: &Path) -> Result<String, Failed> {
    let mut value: Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("revision");
    }
    Ok(value.to_string())
}

/// What may not change of a file of the host's accounts, to which packages and other suites add theirs meanwhile: its owner and
/// mode, the lines of the system's accounts, who else is root, and who needs no password.
fn accounts(file: &Path) -> Result<String, Failed> {
    static FIRST: OnceLock<Vec<String>> = OnceLock::new();
    let system = |l: &str| {
        let mut fields = l.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        (uid < 1000).then(|| name.to_string())
    };
    if FIRST.get().is_none() {
        let passwd = codchi_fs::read_to_string("/etc/passwd")?;
        let _ = FIRST.set(passwd.lines().filter_map(system).collect());
    }
    let names = FIRST.get().ok_or("no accounts")?;
    let meta = file.symlink_metadata()?;
    let mut text = format!(
        "{}:{} {:o}",
        meta.uid(),
        meta.gid(),
        meta.permissions().mode()
    );
    // Who may not read one sees its owner and mode.
    for line in codchi_fs::read_to_string(file).unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let guarded = names.iter().any(|n| fields.first() == Some(&n.as_str()));
        // In both files the second is the password; the user id is the third of one.
        let root = fields.len() == 7 && fields.get(2) == Some(&"0");
        if guarded || root || fields.get(1).is_none_or(|p| p.is_empty()) {
            text.push('\n');
            text.push_str(line);
        }
    }
    Ok(text)
}

/// Owner, mode, kind and content of a file, in a line.
fn describe(path: &Path) -> String {
    let Ok(meta) = path.symlink_metadata() else {
        return format!("{} is not there", path.display());
    };
    let mut text = format!(
        "{} {}:{} {:o}",
        path.display(),
        meta.uid(),
        meta.gid(),
        meta.permissions().mode()
    );
    if meta.is_symlink() {
        let _ = write!(
            text,
            " -> {}",
            std::fs::read_link(path).unwrap_or_default().display()
        );
    } else if meta.is_file() {
        let sum = Sha256::digest(codchi_fs::read(path).unwrap_or_default());
        let _ = write!(text, " {sum:x}");
    }
    text
}

/// The lines of the host's own mount table that name a folder.
fn mounts_below(dir: &Path) -> Result<String, Failed> {
    let table = codchi_fs::read_to_string("/proc/1/mountinfo")?;
    let name = dir.display().to_string();
    Ok(table
        .lines()
        .filter(|l| l.contains(&name))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// Whether the host's clock still is where it was in relation to the time since the host's start.
fn clock() -> String {
    use rustix::time::{ClockId, clock_gettime};
    static FIRST: OnceLock<i64> = OnceLock::new();
    let now = clock_gettime(ClockId::Realtime).tv_sec - clock_gettime(ClockId::Boottime).tv_sec;
    let moved = now - FIRST.get_or_init(|| now);
    if moved.abs() < 3 {
        "as it was".into()
    } else {
        format!("moved by {moved} seconds")
    }
}

/// Starts a machine from a launch that is written down: the suite's own word, which `codchi` has no way to say.
pub fn launch(dir: &str, launch: &str, program: &str, name: &str) -> ExitCode {
    let go = || -> Result<(), String> {
        let text = codchi_fs::read_to_string(launch).map_err(|e| e.to_string())?;
        let launch: codchi_runtime::spec::Launch =
            serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let logs = launch.console_log.parent().ok_or("no folder for logs")?;
        codchi_fs::create_private_dir(logs).map_err(|e| e.to_string())?;
        let program = [program.into(), "supervise".into(), name.into()];
        codchi_runtime::start::start(
            Path::new(dir),
            &launch,
            &program,
            &codchi_secrets::Bundle::new(),
            &mut |_| {},
        )
        .map_err(|e| e.to_string())
    };
    match go() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// What an OCI runtime is told of a machine without guards.
fn open_config(config: &mut Value) {
    config["linux"]["seccomp"]["syscalls"] = json!([]);
    config["linux"]["resources"]["pids"] = json!({});
    let more = [
        "AUDIT_READ",
        "BLOCK_SUSPEND",
        "BPF",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "PERFMON",
        "SYSLOG",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_TIME",
        "WAKE_ALARM",
    ];
    for set in ["bounding", "effective", "permitted"] {
        if let Some(all) = config["process"]["capabilities"][set].as_array_mut() {
            all.extend(more.iter().map(|c| json!(format!("CAP_{c}"))));
        }
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(json!({
            "destination": OWN_MOUNT, "type": "tmpfs", "source": "tmpfs", "options": ["ro"],
        }));
    }
}
