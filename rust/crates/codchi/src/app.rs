//! What every command has at hand.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use codchi_core::dirs::Dirs;
use codchi_core::machine::Host;
use codchi_core::name::MachineName;
use codchi_core::report::Kind;
use codchi_core::settings::Settings;
use codchi_core::text;
use codchi_fs::{Lock, LockError};
use codchi_nix::generations::Generations;

use crate::cli::Globals;
use crate::failure::{Failure, Result};
use crate::printer::Printer;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What every command has at hand. Nothing here was looked at before it is needed.
pub struct App {
    pub dirs: Dirs,
    pub settings: Settings,
    pub printer: Printer,
    pub globals: Globals,
    pub program: PathBuf,
}

impl App {
    /// Finds folders and settings.
    pub fn new(globals: Globals, printer: Printer) -> Result<App> {
        let dirs = dirs()?;
        let settings = settings(&dirs)?;
        Ok(App { dirs, settings, printer, globals, program: program() })
    }

    /// The name of a machine that exists.
    pub fn machine(&self, given: &str) -> Result<MachineName> {
        let name: MachineName = given.parse()?;
        if self.exists(&name) { Ok(name) } else { Err(self.no_machine(&name)) }
    }

    /// Whether there is a machine of that name.
    pub fn exists(&self, name: &MachineName) -> bool {
        self.dirs.host_toml(name).exists()
    }

    fn no_machine(&self, name: &MachineName) -> Failure {
        let failure = Failure::new(Kind::NotFound, format!("there is no machine `{name}`"));
        let all = self.names().unwrap_or_default();
        match text::nearest(name.as_str(), all.iter().map(MachineName::as_str), 1).first() {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if all.is_empty() => failure.hint(format!("make it with `codchi init {name}`")),
            None => failure.hint("`codchi list` shows what there is"),
        }
    }

    /// All machines, by name.
    pub fn names(&self) -> Result<Vec<MachineName>> {
        let entries = match codchi_fs::read_dir(self.dirs.machines()) {
            Ok(e) => e,
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        Ok(entries
            .iter()
            .filter(|e| e.path().join("host.toml").exists())
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Where a machine is attached.
    pub fn attachment(&self, name: &MachineName) -> Result<Host> {
        let file = self.dirs.host_toml(name);
        Ok(Host::parse(&file, &codchi_fs::read_to_string(&file)?)?)
    }

    /// A machine's generations.
    pub fn generations(&self, name: &MachineName) -> Generations {
        Generations::at(self.dirs.generations(name))
    }

    /// Takes a machine's lock, or says who holds it.
    pub fn lock(&self, name: &MachineName, command: &str) -> Result<Lock> {
        self.take(self.dirs.lock(name), name, command, "changed")
    }

    /// Takes a free name for a machine that is about to be made, or says who is making one of that name.
    pub fn claim(&self, name: &MachineName, command: &str) -> Result<Claim> {
        let file = self.dirs.claim(name);
        let lock = self.take(file.clone(), name, command, "made")?;
        Ok(Claim { file, _lock: lock })
    }

    fn take(&self, file: PathBuf, name: &MachineName, command: &str, what: &str) -> Result<Lock> {
        codchi_fs::create_private_dir(self.dirs.locks())?;
        let who = format!("`codchi {command} {name}` (process {})", std::process::id());
        Lock::try_take(file, &who).map_err(|e| match e {
            LockError::Held { holder, .. } => {
                Failure::new(Kind::Busy, format!("`{name}` is being {what} by {holder}"))
                    .hint("try again when it is done")
            }
            LockError::File(e) => e.into(),
        })
    }

    /// Removes the lock files of names that no machine has and nobody holds: those that killed commands leave.
    pub fn sweep_locks(&self) -> Result<()> {
        let entries = match codchi_fs::read_dir(self.dirs.locks()) {
            Err(e) if e.is_not_found() => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let file = entry.file_name().to_string_lossy().into_owned();
            let name = file.strip_suffix(".new").unwrap_or(&file).parse::<MachineName>();
            let is_free = || name.as_ref().is_ok_and(|n| !self.exists(n) && !self.dirs.journal(n).exists());
            if is_free()
                && let Ok(_free) = Lock::try_take(entry.path(), "clean-up")
                && is_free()
            {
                codchi_fs::remove_if_exists(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes the lock of those who make or remove the store.
    pub fn store_lock(&self) -> Result<Lock> {
        // Beside the data folder's own content, which `store remove` removes.
        codchi_fs::create_private_dir(&self.dirs.config)?;
        let who = format!("process {}", std::process::id());
        Lock::try_take(self.dirs.config.join(".store.lock"), &who).map_err(|e| match e {
            LockError::Held { holder, .. } => {
                Failure::new(Kind::Busy, format!("the store is being made or removed by {holder}"))
                    .hint("try again when it is done")
            }
            LockError::File(e) => e.into(),
        })
    }

    /// Whether a person can be asked.
    pub fn can_ask(&self) -> bool {
        !self.globals.no_input && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Asks a person to confirm; `flag` answers instead of one.
    pub fn confirm(&self, question: &str, flag: &str) -> Result<()> {
        if !self.can_ask() {
            let hint = format!("`{flag}` answers yes");
            return Err(
                Failure::new(Kind::Declined, format!("not done without an answer: {question}")).hint(hint)
            );
        }
        match self.printer.ask(&format!("{question} [y/N]")).as_deref() {
            Some("y" | "Y" | "yes" | "Yes") => Ok(()),
            _ => Err(Failure::new(Kind::Declined, "nothing was changed")),
        }
    }

    /// The same, answered by `--yes`.
    pub fn confirm_yes(&self, question: &str) -> Result<()> {
        if self.globals.yes { Ok(()) } else { self.confirm(question, "--yes") }
    }

    /// The caller's home, without links on the way.
    pub fn home(&self) -> PathBuf {
        self.dirs.home.canonicalize().unwrap_or_else(|_| self.dirs.home.clone())
    }

    /// A path as a person would write it.
    pub fn shown(&self, path: &Path) -> String {
        self.dirs.shown(path)
    }
}

/// A name that is taken for a machine in the making, until this is dropped.
pub struct Claim {
    file: PathBuf,
    _lock: Lock,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = codchi_fs::remove_if_exists(&self.file);
    }
}

/// The folders of the caller.
pub fn dirs() -> Result<Dirs> {
    let uid = rustix::process::geteuid().as_raw();
    // In a machine `/run/codchi` is the machine's side of Codchi: its root, who runs machines in it, keeps theirs elsewhere.
    let inside = uid == 0 && Path::new("/run/codchi/bin").exists();
    let var = |name: &str| match std::env::var_os(name) {
        None if inside && name == "XDG_RUNTIME_DIR" => Some("/run/nested".into()),
        value => value,
    };
    Ok(Dirs::from_env(&var, uid)?)
}

/// The caller's settings.
pub fn settings(dirs: &Dirs) -> Result<Settings> {
    let file = dirs.settings();
    let mut settings = match codchi_fs::read_if_exists(&file)? {
        Some(text) => Settings::parse(&file, &text)?,
        None => Settings::default(),
    };
    let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    if let Some(driver) = var("CODCHI_DRIVER") {
        settings.defaults.driver = Some(driver);
    }
    if let Some(suite) = var("CODCHI_BASE_SUITE") {
        settings.base.suite = suite;
    }
    if let Some(mirror) = var("CODCHI_BASE_MIRROR") {
        settings.base.mirror = Some(mirror);
    }
    if let Some(mirror) = var("CODCHI_BASE_SECURITY_MIRROR") {
        settings.base.security_mirror = Some(mirror);
    }
    if var("CODCHI_BASE_ACCEPT_STALE").is_some_and(|v| v != "0") {
        settings.base.accept_expired = true;
    }
    Ok(settings)
}

/// This program's own file, to run it again in a process of its own.
pub fn program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "codchi".into())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
