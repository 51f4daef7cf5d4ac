//! The real program in a throw-away home.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_codchi");

pub struct Home {
    dir: tempfile::TempDir,
}

pub struct Done {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Home {
    pub fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, &[])
    }

    /// With some variables more.
    pub fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Done {
        self.done(self.command(PROGRAM).args(args).envs(variables.iter().copied()))
    }

    /// A program with nothing of this computer's but its folder of programs, in the home.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("HOME", self.path())
            .env("PATH", "/usr/bin:/bin")
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            // Whatever apt of this computer is told of a proxy.
            .env("no_proxy", "127.0.0.1")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// What came of it.
    pub fn done(&self, command: &mut Command) -> Done {
        let done = command.output().unwrap();
        let text = |b: Vec<u8>| {
            let home = self.path().canonicalize().unwrap().display().to_string();
            String::from_utf8(b)
                .unwrap()
                .replace(&home, "HOME")
                .replace(&self.path().display().to_string(), "HOME")
        };
        Done { status: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
    }

    /// A machine as its files say, without anything behind them.
    pub fn machine(&self, name: &str, host: &str) -> PathBuf {
        let dir = self.path().join(".config/codchi/machines").join(name);
        codchi_fs::create_dir_all(&dir).unwrap();
        codchi_fs::write(dir.join("host.toml"), host).unwrap();
        dir
    }

    /// Writes a file, and the folders that it is in.
    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(file);
        codchi_fs::create_dir_all(path.parent().unwrap()).unwrap();
        codchi_fs::write(&path, content.as_ref()).unwrap();
        path
    }

    /// Every file below the home, with its content.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        fn walk(dir: &Path, out: &mut Vec<(String, Vec<u8>)>) {
            for entry in codchi_fs::read_dir(dir).unwrap() {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), out);
                } else {
                    out.push((
                        entry.path().display().to_string(),
                        codchi_fs::read(entry.path()).unwrap_or_default(),
                    ));
                }
            }
        }
        let mut out = Vec::new();
        walk(self.path(), &mut out);
        out
    }
}

pub const HOST: &str =
    "version = 1\ndriver = \"native\"\nbase = \"debian\"\nsuite = \"bookworm\"\ncreated = 1\n";

/// Runs one line, requires its status, that it prints no data, and that no file changes; gives what it says.
pub fn refused(home: &Home, args: &[&str], status: i32) -> String {
    refused_with(home, args, &[], status)
}

/// The same, with some variables more.
pub fn refused_with(home: &Home, args: &[&str], variables: &[(&str, &str)], status: i32) -> String {
    let mut command = home.command(PROGRAM);
    refused_by(home, &args.join(" "), command.args(args).envs(variables.iter().copied()), status)
}

/// The same of a command that is made already, and shown as this line.
pub fn refused_by(home: &Home, line: &str, command: &mut Command, status: i32) -> String {
    let before = home.files();
    let done = home.done(command);
    assert_eq!(done.status, status, "codchi {line}: {}", done.err);
    assert_eq!(done.out, "", "codchi {line}");
    assert!(home.files() == before, "codchi {line} changed something");
    assert!(done.err.starts_with("error: "), "codchi {line}: {}", done.err);
    format!("$ codchi {line}\n{}", done.err)
}
