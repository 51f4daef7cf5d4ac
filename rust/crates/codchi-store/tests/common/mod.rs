//! A real store for tests: made once from the mirror of this host, kept in cargo's folder for tests.
#![allow(dead_code, clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// As whom a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    /// An ordinary user with subordinate ids, named by `CODCHI_TEST_USER`.
    User,
}

/// A home with a store, for one test at a time.
pub struct Home {
    pub who: Who,
    pub path: PathBuf,
    user: Option<String>,
    _lock: File,
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Home {
    /// `None` where this process cannot be that person: tests of root need root, those of a user need a user.
    pub fn new(who: Who, name: &str) -> Option<Home> {
        let user = match (who, is_root()) {
            (Who::Root, true) | (Who::User, false) => None,
            (Who::Root, false) => return None,
            (Who::User, true) => Some(std::env::var("CODCHI_TEST_USER").ok()?),
        };
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{who:?}").to_lowercase());
        std::fs::create_dir_all(path.join(".config/codchi")).unwrap();
        let lock = File::create(path.join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let home = Home { who, path, user, _lock: lock };
        home.settings("kind = \"own\"\nnix-conf = \"substituters =\"\n");
        if let Some(user) = &home.user {
            let done = Command::new("chown").args(["-hR", user, ".config"]).current_dir(&home.path).status();
            assert!(done.unwrap().success());
            assert!(Command::new("chown").arg(user).arg(&home.path).status().unwrap().success());
        }
        Some(home)
    }

    /// With a store in it: of the mirror's Nix, or of another by `CODCHI_TEST_NIX_TARBALL`, an address.
    pub fn with_store(who: Who) -> Option<Home> {
        let tarball = std::env::var("CODCHI_TEST_NIX_TARBALL").ok();
        let home = Home::new(who, if tarball.is_some() { "other" } else { "store" })?;
        if let Some(url) = tarball {
            // A tarball made like that of these tests brings its shell along.
            let conf = "substituters =\\nsandbox-paths = /bin/sh=/nix/var/nix/gcroots/codchi/nix/libexec/sh";
            home.settings(&format!("kind = \"own\"\nnix-conf = \"{conf}\"\nnix-tarball = \"{url}\"\n"));
        }
        let out = home.plumbing(&["bootstrap"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        Some(home)
    }

    pub fn settings(&self, store: &str) {
        let file = self.path.join(".config/codchi/config.toml");
        std::fs::write(&file, format!("version = 1\n[store]\n{store}")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub fn store_dir(&self) -> PathBuf {
        self.path.join(".local/share/codchi/store")
    }

    /// The test's stand-in for `codchi`, as the person of this home.
    pub fn plumbing(&self, args: &[&str]) -> Command {
        let mut c = self.command(plumbing().to_str().unwrap());
        c.args(args);
        c
    }

    /// A program as the person of this home.
    pub fn command(&self, program: &str) -> Command {
        let mut c = match &self.user {
            None => Command::new(program),
            Some(user) => {
                let mut c = Command::new("setpriv");
                c.args(["--reuid", user, "--regid", user, "--init-groups", program]);
                c
            }
        };
        c.env_clear().env("HOME", &self.path).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        c.env("XDG_RUNTIME_DIR", self.path.join("run"));
        c.stdin(Stdio::null());
        c
    }

    /// Runs a Nix program in the store and gives its stdout.
    pub fn nix(&self, args: &[&str]) -> String {
        let out = self.plumbing(&["run"]).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

pub fn plumbing() -> PathBuf {
    // Next to the tests' own folder.
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().join("examples/plumbing")
}

pub fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}

pub fn text(out: &Output) -> String {
    format!(
        "{}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Runs a command with a script as its stdin.
pub fn feed(mut c: Command, script: &str) -> Output {
    let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

impl Home {
    /// The store of this home, for a test that is that person itself.
    pub fn store(&self) -> codchi_store::Store {
        self.place().open().unwrap().unwrap()
    }

    pub fn place(&self) -> codchi_store::Place {
        let var = |n: &str| match n {
            "HOME" => Some(self.path.clone().into_os_string()),
            "XDG_RUNTIME_DIR" => Some(self.path.join("run").into_os_string()),
            _ => None,
        };
        let uid = rustix::process::geteuid().as_raw();
        let dirs = codchi_core::dirs::Dirs::from_env(&var, uid).unwrap();
        let text = std::fs::read_to_string(dirs.settings()).unwrap();
        let settings = codchi_core::settings::Settings::parse(&dirs.settings(), &text).unwrap();
        codchi_store::Place { dirs, settings, plumbing: vec![plumbing().into()] }
    }
}
