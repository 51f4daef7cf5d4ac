//! Engines that the suite starts for itself, so that nothing of the host is used or touched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::host::run;

/// A running engine.
pub struct Engine {
    daemon: Child,
    dir: PathBuf,
}

impl Engine {
    /// The folder of the engine that goes with a home.
    pub fn place(home: &Path, name: &str) -> PathBuf {
        let mut place = home.as_os_str().to_owned();
        place.push(format!("-{name}"));
        place.into()
    }

    /// Starts an Incus daemon in `dir`.
    pub fn incus(repo: &Path, dir: PathBuf) -> Result<Engine, Failed> {
        let log = codchi_fs::create(Engine::place(&dir, "out"))?;
        let daemon = Command::new(repo.join("tests/incus-host"))
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut engine = Engine { daemon, dir };
        engine.wait_until_ready()?;
        engine.command(&["storage", "create", "default", "dir"])?;
        Ok(engine)
    }

    fn wait_until_ready(&mut self) -> Result<(), Failed> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let ready = Command::new("incus")
                .args(["admin", "waitready", "--timeout", "1"])
                .env("INCUS_DIR", &self.dir)
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
                return Err(format!("the Incus daemon does not start: {said}").into());
            }
        }
    }

    /// Where `incus` and Codchi find it.
    pub fn environment(&self) -> (&'static str, &Path) {
        ("INCUS_DIR", &self.dir)
    }

    /// `incus ARGS`; anything but success is a failure.
    pub fn command(&self, args: &[&str]) -> Result<String, Failed> {
        let mut c = Command::new("incus");
        c.args(args)
            .env("INCUS_DIR", &self.dir)
            .env("INCUS_CONF", Engine::place(&self.dir, "client"));
        Ok(run(&mut c, b"")?.ok()?.text())
    }

    /// Ends the daemon, its instances go on; and starts it again.
    pub fn pause<T>(
        &mut self,
        repo: &Path,
        meanwhile: impl FnOnce() -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        self.signal(rustix::process::Signal::TERM);
        self.daemon.wait()?;
        let done = meanwhile();
        let log = codchi_fs::create(Engine::place(&self.dir, "out"))?;
        self.daemon = Command::new(repo.join("tests/incus-host"))
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.wait_until_ready()?;
        done
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.daemon), signal);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::POWER);
        let _ = self.daemon.wait();
        let _ = codchi_fs::remove_dir_all(&self.dir);
        let _ = codchi_fs::remove_dir_all(Engine::place(&self.dir, "client"));
        for file in ["out", "log"] {
            let _ = codchi_fs::remove_if_exists(Engine::place(&self.dir, file));
        }
    }
}
