//! A throw-away home on this host, and the `codchi` program run in it as its user would.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use libtest_mimic::Failed;

use crate::engine::{self, Engine, Libvirt};

/// What a finished command left.
#[derive(Debug)]
pub struct Done {
    /// Exit status; 128 + n where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// Standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out)
            .trim_end_matches('\n')
            .to_string()
    }

    /// Requires exit status 0.
    pub fn ok(self) -> Result<Done, Failed> {
        self.exits(0)
    }

    /// Requires an exit status.
    pub fn exits(self, status: i32) -> Result<Done, Failed> {
        if self.status == status {
            Ok(self)
        } else {
            Err(format!(
                "exit status {} where {status} was expected\nstdout: {}\nstderr: {}",
                self.status,
                self.text(),
                self.err
            )
            .into())
        }
    }
}

/// How Codchi is run: as root, or as an ordinary user with what a desktop session would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As root.
    Root,
    /// As an ordinary user, with subordinate ids and a delegated cgroup.
    Rootless,
}

/// A home directory and the way commands are run in it.
pub struct Host {
    /// Root or rootless.
    pub kind: Kind,
    /// The Debian release of the built-in base.
    pub suite: String,
    /// `HOME` of the commands.
    pub home: PathBuf,
    /// The repository under test.
    pub repo: PathBuf,
    program: PathBuf,
    user: String,
    /// What machines run on.
    pub driver: &'static str,
    engine: Option<Mutex<Engine>>,
    libvirt: Option<Mutex<Libvirt>>,
}

impl Host {
    /// A host in `home`, which is created; `kind-suite` is for example `rootless-trixie`.
    pub fn new(
        which: &str,
        home: PathBuf,
        repo: PathBuf,
        program: PathBuf,
    ) -> Result<Host, Failed> {
        let (kind, suite) = which.split_once('-').ok_or("expected KIND-SUITE")?;
        let engine = engine::KINDS.iter().find(|k| k.name == kind);
        let (kind, driver) = match kind {
            "root" => (Kind::Root, "native"),
            "rootless" => (Kind::Rootless, "native"),
            "qemu" => (Kind::Root, "qemu"),
            "rootlessqemu" => (Kind::Rootless, "qemu"),
            "libvirt" => (Kind::Root, "libvirt"),
            "rootlesslibvirt" => (Kind::Rootless, "libvirt"),
            "oci" => (Kind::Root, "oci"),
            "rootlessoci" => (Kind::Rootless, "oci"),
            other => match engine {
                Some(engine) => (Kind::Root, engine.name),
                None => return Err(format!("unknown kind `{other}`").into()),
            },
        };
        codchi_fs::create_dir_all(&home)?;
        let user = std::env::var("CODCHI_TEST_USER").unwrap_or_else(|_| "codchi-test".into());
        let engine = engine
            .map(|kind| Engine::start(kind, &repo, Engine::place(&home, kind.name)))
            .transpose()?
            .map(Mutex::new);
        let libvirt = match (driver, kind) {
            ("libvirt", Kind::Root) => Some(Mutex::new(Libvirt::start(
                &repo,
                Engine::place(&home, driver),
            )?)),
            _ => None,
        };
        let host = Host {
            driver,
            engine,
            libvirt,
            kind,
            suite: suite.into(),
            home,
            repo,
            program,
            user,
        };
        if kind == Kind::Rootless {
            // Creates the person on a host that has none.
            let script = host.repo.join("tests/rootless-host");
            run(Command::new(script).args([&host.user, "true"]), b"")?.ok()?;
            run(
                Command::new("chown")
                    .arg(format!("{}:", host.user))
                    .arg(&host.home),
                b"",
            )?
            .ok()?;
        }
        Ok(host)
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether machines run on an engine of the suite's own.
    pub fn has_engine(&self) -> bool {
        self.engine.is_some()
    }

    /// The engine of the suite's own.
    pub fn engine(&self) -> Result<MutexGuard<'_, Engine>, Failed> {
        let engine = self.engine.as_ref().ok_or("there is no engine")?;
        engine
            .lock()
            .map_err(|_| "an earlier case broke off in the engine".into())
    }

    /// Whether machines have a kernel of their own.
    pub fn is_virtual(&self) -> bool {
        matches!(self.driver, "qemu" | "libvirt")
    }

    /// `codchi ARGS` that is not told of the engine.
    pub fn plain_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut c = self.bare(&self.program);
        c.args(args);
        c
    }

    /// A command on the host, as the person under test, in the person's home.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut c = self.bare(program);
        if let Some(engine) = &self.engine
            && let Ok(engine) = engine.lock()
        {
            let (name, value) = engine.environment();
            c.env(name, value);
        }
        if let Some(libvirt) = &self.libvirt
            && let Ok(libvirt) = libvirt.try_lock()
        {
            c.env("LIBVIRT_DEFAULT_URI", libvirt.uri());
        }
        c
    }

    /// Ends the suite's own libvirt while something is done.
    pub fn without_libvirt(
        &self,
        f: impl FnOnce(&str) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let libvirt = self
            .libvirt
            .as_ref()
            .ok_or("there is no libvirt of the suite's")?;
        let mut libvirt = libvirt.lock().map_err(|_| "an earlier case broke off")?;
        let uri = libvirt.uri();
        libvirt.pause(|| f(&uri))
    }

    fn bare(&self, program: impl AsRef<OsStr>) -> Command {
        let mut c = match self.kind {
            Kind::Root => Command::new(program),
            Kind::Rootless => {
                let mut c = Command::new(self.repo.join("tests/rootless-host"));
                c.arg(&self.user).arg(program);
                c
            }
        };
        c.env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.home.join("run"))
            .env("LANG", "C.UTF-8")
            .env("CODCHI_BASE", "debian")
            .env("CODCHI_DRIVER", self.driver)
            .env("CODCHI_BASE_SUITE", &self.suite)
            .env("CODCHI_BASE_ACCEPT_STALE", "1")
            .current_dir(&self.home);
        for (k, v) in std::env::vars_os() {
            let k = k.to_string_lossy().into_owned();
            if k.ends_with("_proxy")
                || k.ends_with("_PROXY")
                || k == "SSL_CERT_FILE"
                || k.starts_with("CODCHI_TEST_")
            {
                c.env(k, v);
            }
        }
        c
    }

    /// `codchi ARGS`, not yet started.
    pub fn codchi_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut c = self.command(&self.program);
        c.args(args);
        c
    }

    /// Runs `codchi ARGS` with nothing on standard input.
    pub fn codchi<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Done, Failed> {
        self.codchi_with(args, b"")
    }

    /// Runs `codchi ARGS` with `input` on standard input.
    pub fn codchi_with<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Result<Done, Failed> {
        run(&mut self.codchi_command(args), input)
    }

    /// Runs a shell script in a machine and returns its standard output; anything but success fails the case.
    pub fn sh(&self, machine: &str, script: &str) -> Result<String, Failed> {
        Ok(self
            .codchi(&["exec", machine, "--", "sh", "-c", script])?
            .ok()?
            .text())
    }

    /// The same as the machine's root.
    pub fn root_sh(&self, machine: &str, script: &str) -> Result<String, Failed> {
        Ok(self
            .codchi(&["exec", "-u", "root", machine, "--", "sh", "-c", script])?
            .ok()?
            .text())
    }

    /// `codchi status --json` of one machine.
    pub fn status(&self, machine: &str) -> Result<serde_json::Value, Failed> {
        let text = self.codchi(&["status", machine, "--json"])?.ok()?.text();
        let all: serde_json::Value = serde_json::from_str(&text)?;
        all["machines"]
            .as_array()
            .and_then(|m| m.iter().find(|m| m["name"] == machine))
            .cloned()
            .ok_or_else(|| format!("`{machine}` is not in {text}").into())
    }

    /// Copies a folder of the repository into the home, owned by the person, as a git repository.
    pub fn checkout(&self, from: &str, to: &str) -> Result<PathBuf, Failed> {
        let source = self.repo.join(from);
        let target = self.home.join(to);
        run(Command::new("cp").arg("-rT").arg(&source).arg(&target), b"")?.ok()?;
        if self.kind == Kind::Rootless {
            run(
                Command::new("chown").arg("-R").arg(&self.user).arg(&target),
                b"",
            )?
            .ok()?;
        }
        self.commit(&target)?;
        Ok(target)
    }

    /// Writes a file in the person's home, for the person alone.
    pub fn file(&self, name: &str, text: &str) -> Result<(), Failed> {
        let path = self.home.join(name);
        codchi_fs::write_atomic(&path, text, 0o600)?;
        if self.kind == Kind::Rootless {
            run(Command::new("chown").arg(&self.user).arg(&path), b"")?.ok()?;
        }
        Ok(())
    }

    /// Commits everything in a repository of the person's.
    pub fn commit(&self, repo: &Path) -> Result<(), Failed> {
        let script = "cd \"$0\" && git init -q . && git add -A && git -c user.name=t -c user.email=t@example.org commit -qm t";
        run(self.command("sh").arg("-c").arg(script).arg(repo), b"")?.ok()?;
        Ok(())
    }

    /// Every process that belongs to this home: supervisors, daemons, network helpers.
    pub fn processes(&self) -> Vec<String> {
        let home = self.home.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in codchi_fs::read_dir("/proc").unwrap_or_default() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
                continue;
            }
            let env = codchi_fs::read(entry.path().join("environ")).unwrap_or_default();
            let cmd = codchi_fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let marker = format!("HOME={home}\0");
            // libvirt's daemons of a person's own end when nobody has asked them for a while.
            let words = cmd.split(|b| *b == 0).collect::<Vec<_>>();
            if words.get(1) == Some(&b"--timeout=120".as_slice()) && words[0].ends_with(b"d") {
                continue;
            }
            if String::from_utf8_lossy(&env).contains(&marker) {
                found.push(format!(
                    "{pid} {}",
                    String::from_utf8_lossy(&cmd).replace('\0', " ")
                ));
            }
        }
        found
    }
}

/// Runs a command to its end with `input` on standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Result<Done, Failed> {
    use std::os::unix::process::ExitStatusExt;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that does not read its input is no failure of the case.
        let _ = stdin.write_all(&input);
    });
    let out = child.wait_with_output()?;
    let _ = writer.join();
    let status = out
        .status
        .code()
        .unwrap_or_else(|| 128 + out.status.signal().unwrap_or(0));
    Ok(Done {
        status,
        out: out.stdout,
        err: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}
