//! A home directory of our own with Codchi in it, and what it leaves behind there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::measure::{output, timed};

/// The machine that most figures use.
pub const MACHINE: &str = "bench";

/// A throw-away home.
pub struct Host {
    home: tempfile::TempDir,
    program: PathBuf,
    /// The repository, for its templates.
    pub repo: PathBuf,
    /// A large git work tree that a machine gets as an input.
    pub tree: Option<PathBuf>,
    machines: Vec<String>,
}

impl Host {
    /// A home in the usual place for temporary files; `TMPDIR` chooses another.
    pub fn new(program: &Path, tree: Option<PathBuf>) -> Result<Host, Error> {
        let home = tempfile::Builder::new()
            .prefix("codchi-bench.")
            .tempdir()
            .map_err(|source| Error::Run {
                program: "mkdtemp".into(),
                source,
            })?;
        let repo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned();
        Ok(Host {
            home,
            program: program.to_owned(),
            repo,
            tree,
            machines: Vec::new(),
        })
    }

    /// A program with the home's variables and none of this process's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let home = self.home.path();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", home)
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("LANG", "C.UTF-8")
            .env("CODCHI_BASE", "debian")
            .current_dir(home);
        for (name, value) in std::env::vars_os() {
            let text = name.to_string_lossy().to_lowercase();
            if text.ends_with("_proxy")
                || text == "ssl_cert_file"
                || text.starts_with("codchi_base_")
            {
                command.env(name, value);
            }
        }
        command
    }

    /// `codchi ARGS`.
    pub fn codchi(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(args);
        command
    }

    /// `codchi init` of a machine of the hello template.
    pub fn init(&mut self, name: &str, more: &[&str]) -> Result<Command, Error> {
        let source = self.repo.join("docs/templates/hello");
        self.init_of(name, &source, more)
    }

    /// `codchi init` of a machine of a module.
    pub fn init_of(&mut self, name: &str, source: &Path, more: &[&str]) -> Result<Command, Error> {
        let run = self.home.path().join("run");
        codchi_fs::create_private_dir(&run)?;
        self.machines.push(name.into());
        let mut command = self.codchi(&["init", name]);
        command.arg(source).args(more);
        Ok(command)
    }

    /// `codchi duplicate`.
    pub fn copy(&self, from: &str, to: &str) -> Command {
        self.codchi(&["duplicate", from, to])
    }

    /// The machine that most figures use, made now if it is not there yet.
    pub fn machine(&mut self) -> Result<&'static str, Error> {
        if !self.machines.iter().any(|m| m == MACHINE) {
            timed(self.init(MACHINE, &[])?)?;
        }
        Ok(MACHINE)
    }

    /// What `codchi status --json` says of a machine.
    pub fn status(&self, name: &str) -> Result<serde_json::Value, Error> {
        let text = output(self.codchi(&["status", name, "--json"]))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::Not(format!("the status is not JSON: {e}")))?;
        Ok(value["machines"][0].clone())
    }

    /// The host's process id of a running machine's first process.
    pub fn leader(&self, name: &str) -> Result<String, Error> {
        let status = self.status(name)?;
        let leader = status["leader"].as_u64();
        leader
            .map(|l| l.to_string())
            .ok_or_else(|| Error::Not(format!("machine `{name}` does not run")))
    }

    /// Codchi's data.
    pub fn data(&self) -> PathBuf {
        self.home.path().join(".local/share/codchi")
    }

    /// Codchi's cache.
    pub fn cache(&self) -> PathBuf {
        self.home.path().join(".cache/codchi")
    }

    /// Scratch space.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Bytes that a tree takes on the disk, without a folder of it.
    pub fn bytes(&self, tree: &Path, without: Option<&str>) -> Result<f64, Error> {
        let mut du = self.command("du");
        du.args(["-s", "-B1", "-x"]);
        if let Some(without) = without {
            du.arg(format!("--exclude={}", tree.join(without).display()));
        }
        du.arg(tree);
        let text = output(du)?;
        let first = text.split_whitespace().next().and_then(|n| n.parse().ok());
        first.ok_or_else(|| Error::Not("du says nothing".into()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.machines.is_empty() {
            return;
        }
        if let Err(e) = timed(self.codchi(&["store", "remove", "--all", "--yes"])) {
            eprintln!(
                "cannot remove the store in {}: {e}",
                self.home.path().display()
            );
        }
    }
}
