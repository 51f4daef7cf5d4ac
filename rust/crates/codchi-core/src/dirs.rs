//! Where Codchi keeps what, computed from an environment that the caller hands in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::name::MachineName;
use crate::report::{Diagnose, Kind};

/// The folders of one user on one host. Pure: nothing is created or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Settings and machine folders: what a person may edit and commit.
    pub config: PathBuf,
    /// Journal, logs, generations, locks.
    pub state: PathBuf,
    /// Own store, root file systems, static programs. Only its owner may enter.
    pub data: PathBuf,
    /// What can be fetched again.
    pub cache: PathBuf,
    /// Sockets and supervisor state; gone after a reboot.
    pub runtime: PathBuf,
    /// The user's home.
    pub home: PathBuf,
    /// Numeric id of the user whose folders these are; 0: root.
    pub uid: u32,
}

/// Why the folders cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DirsError {
    /// Neither HOME nor the XDG variables say where files go.
    #[error("`HOME` is not set to an absolute path")]
    NoHome,
}

impl Diagnose for DirsError {
    fn kind(&self) -> Kind {
        Kind::Host
    }
    fn hints(&self) -> Vec<String> {
        vec!["set it, for example `export HOME=/home/me`".into()]
    }
}

impl Dirs {
    /// Computes the folders from environment variables, by the XDG base directory specification: a variable that is unset,
    /// empty or relative is ignored.
    pub fn from_env(var: &dyn Fn(&str) -> Option<OsString>, uid: u32) -> Result<Dirs, DirsError> {
        let absolute = |name: &str| var(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = match absolute("HOME") {
            Some(h) => h,
            None if uid == 0 => "/root".into(),
            None => return Err(DirsError::NoHome),
        };
        let base =
            |name: &str, default: &str| absolute(name).unwrap_or_else(|| home.join(default)).join("codchi");
        // That of a log-in of root's goes with the last of them, and a service of the system's has none.
        let of_login = |p: &PathBuf| uid == 0 && p.as_path() == Path::new("/run/user/0");
        let runtime = match absolute("XDG_RUNTIME_DIR").filter(|p| !of_login(p)) {
            Some(p) => p.join("codchi"),
            None if uid == 0 => "/run/codchi".into(),
            None => format!("/tmp/codchi-{uid}").into(),
        };
        Ok(Dirs {
            config: base("XDG_CONFIG_HOME", ".config"),
            state: base("XDG_STATE_HOME", ".local/state"),
            data: base("XDG_DATA_HOME", ".local/share"),
            cache: base("XDG_CACHE_HOME", ".cache"),
            runtime,
            home,
            uid,
        })
    }

    /// Whether these are root's.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
    /// The settings file.
    pub fn settings(&self) -> PathBuf {
        self.config.join("config.toml")
    }
    /// The folder of all machine folders.
    pub fn machines(&self) -> PathBuf {
        self.config.join("machines")
    }
    /// A machine's folder: `flake.nix`, `flake.lock`, `host.toml`.
    pub fn machine(&self, name: &MachineName) -> PathBuf {
        self.machines().join(name)
    }
    /// Where a machine is attached on this host.
    pub fn host_toml(&self, name: &MachineName) -> PathBuf {
        self.machine(name).join("host.toml")
    }
    /// The folder of journals.
    pub fn journals(&self) -> PathBuf {
        self.state.join("journal")
    }
    /// The journal of the command that is changing a machine.
    pub fn journal(&self, name: &MachineName) -> PathBuf {
        self.journals().join(format!("{name}.json"))
    }
    /// A machine's logs.
    pub fn logs(&self, name: &MachineName) -> PathBuf {
        self.state.join("logs").join(name)
    }
    /// A machine's console log.
    pub fn console_log(&self, name: &MachineName) -> PathBuf {
        self.logs(name).join("console.log")
    }
    /// A machine's generations: `N` (link to the toplevel), `N.json`, `current` (link to `N`).
    pub fn generations(&self, name: &MachineName) -> PathBuf {
        self.state.join("generations").join(name)
    }
    /// The folder of lock files, one for each machine name.
    pub fn locks(&self) -> PathBuf {
        self.state.join("locks")
    }
    /// A machine's lock file.
    pub fn lock(&self, name: &MachineName) -> PathBuf {
        self.locks().join(name)
    }
    /// What the command that makes a machine of that name holds from its beginning on, before there is anything to lock.
    pub fn claim(&self, name: &MachineName) -> PathBuf {
        self.locks().join(format!("{name}.new"))
    }
    /// Machine folders being made; each is locked by its maker. Beside their place, so that moving them there is one step.
    pub fn staging(&self) -> PathBuf {
        self.config.join(".staging")
    }
    /// The own store: `nix/` is what is mounted at `/nix`, `dist/` the Nix program.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }
    /// What a machine keeps on this host.
    pub fn machine_data(&self, name: &MachineName) -> PathBuf {
        self.data.join("machines").join(name)
    }
    /// A machine's root file system.
    pub fn machine_root(&self, name: &MachineName) -> PathBuf {
        self.machine_data(name).join("root")
    }
    /// Encrypted secrets of all machines.
    pub fn secrets(&self) -> PathBuf {
        self.data.join("secrets")
    }
    /// The key of the encrypted secrets, apart from them.
    pub fn secrets_key(&self) -> PathBuf {
        self.state.join("secrets-key")
    }
    /// Static programs, by content hash.
    pub fn bin(&self) -> PathBuf {
        self.data.join("bin")
    }
    /// Downloaded packages of the built-in base.
    pub fn debs(&self) -> PathBuf {
        self.cache.join("debs")
    }
    /// Where the downloaded package of that SHA-256 lies.
    pub fn deb(&self, sha256: &str) -> PathBuf {
        self.debs().join(format!("{sha256}.deb"))
    }
    /// Downloaded package lists of the built-in base.
    pub fn lists(&self) -> PathBuf {
        self.cache.join("lists")
    }
    /// Sockets and state of a running machine: `agent/`, `daemon/`, `notify/`, `spec.json`, `supervisor.json`.
    pub fn machine_runtime(&self, name: &MachineName) -> PathBuf {
        self.runtime.join("machines").join(name)
    }
    /// A path as a person would write it: `~` for the home.
    pub fn shown(&self, path: &Path) -> String {
        match path.strip_prefix(&self.home) {
            Ok(rest) if rest.as_os_str().is_empty() => "~".into(),
            Ok(rest) => format!("~/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(vars: &[(&str, &str)], uid: u32) -> Result<Dirs, DirsError> {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Dirs::from_env(&move |n| vars.iter().find(|(k, _)| k == n).map(|(_, v)| v.into()), uid)
    }

    #[test]
    fn xdg_variables_decide_and_relative_ones_are_ignored() {
        let d = dirs(
            &[("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("XDG_CACHE_HOME", "rel"), ("XDG_STATE_HOME", "")],
            1000,
        )
        .unwrap();
        assert_eq!(d.data, Path::new("/d/codchi"));
        assert_eq!(d.cache, Path::new("/h/.cache/codchi"));
        assert_eq!(d.state, Path::new("/h/.local/state/codchi"));
        assert_eq!(d.runtime, Path::new("/tmp/codchi-1000"));
        assert_eq!(d.shown(Path::new("/h/x")), "~/x");
    }

    #[test]
    fn root_has_a_home_and_a_runtime_folder_of_its_own() {
        let d = dirs(&[], 0).unwrap();
        assert_eq!(d.config, Path::new("/root/.config/codchi"));
        assert_eq!(d.runtime, Path::new("/run/codchi"));
        let login = dirs(&[("XDG_RUNTIME_DIR", "/run/user/0")], 0).unwrap();
        assert_eq!(login.runtime, d.runtime);
        assert_eq!(dirs(&[], 1000), Err(DirsError::NoHome));
    }
}
