//! A store: where it is and how programs run in it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use codchi_core::dirs::Dirs;
use codchi_core::name::MachineName;
use codchi_core::progress::Progress;
use codchi_core::settings::{Settings, StoreKind};
use codchi_nix::{Launch, Role, StorePath, Version};
use codchi_runtime::outer;

use crate::detect::{self, HostNix};
use crate::endpoint::Endpoint;
use crate::{Result, StoreError, bootstrap, endpoint};

/// Where stores are looked for and made.
#[derive(Clone, Debug)]
pub struct Place {
    /// The caller's folders.
    pub dirs: Dirs,
    /// The settings.
    pub settings: Settings,
    /// The program that has the plumbing verbs, with leading arguments: `codchi store`.
    pub plumbing: Vec<OsString>,
}

impl Place {
    /// With this very program as the one that has the plumbing verbs.
    pub fn new(dirs: &Dirs, settings: &Settings) -> Place {
        // Not its path: a program that was replaced while it runs must not start its successor.
        let plumbing = vec!["/proc/self/exe".into(), "store".into()];
        Place { dirs: dirs.clone(), settings: settings.clone(), plumbing }
    }

    /// The store in use, if there is one. An own store, once made, stays in use: its machines need it.
    pub fn open(&self) -> Result<Option<Store>> {
        let own = || -> Result<Option<Store>> {
            let Some((dist, version)) = bootstrap::installed(&self.dirs)? else { return Ok(None) };
            bootstrap::write_conf(self)?;
            Ok(Some(self.store(Kind::Own { dist, version })))
        };
        let host = || {
            let found = detect::host(std::env::var_os("PATH").as_deref())?;
            // Before, a daemon in front of another could not be told to trust less.
            let enough = Version { major: 2, minor: 20, patch: 0 };
            if !outer::is_privileged() && found.version < enough {
                return Err(format!(
                    "its version is {}, and without the host's root {enough} is needed",
                    found.version
                ));
            }
            Ok(found)
        };
        match self.settings.store.kind {
            StoreKind::Own => own(),
            StoreKind::Host => match host() {
                Ok(h) => Ok(Some(self.store(Kind::Host(h)))),
                Err(why) => Err(StoreError::NoHostStore(why)),
            },
            StoreKind::Auto => match own()? {
                Some(s) => Ok(Some(s)),
                None => Ok(host().ok().map(|h| self.store(Kind::Host(h)))),
            },
        }
    }

    /// The store in use, made when there is none.
    pub fn bootstrap(&self, progress: &dyn Progress) -> Result<Store> {
        if let Some(store) = self.open()? {
            return Ok(store);
        }
        bootstrap::run(self, progress)?;
        self.open()?.ok_or(StoreError::None)
    }

    pub(crate) fn store(&self, kind: Kind) -> Store {
        Store { kind, place: self.clone() }
    }
}

/// Whose a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host's, behind its daemon.
    Host(HostNix),
    /// Codchi's, in the data directory.
    Own {
        /// The folder of the Nix programs.
        dist: PathBuf,
        /// Their version.
        version: Version,
    },
}

/// A store that is there.
#[derive(Clone, Debug)]
pub struct Store {
    kind: Kind,
    place: Place,
}

impl Store {
    /// The store in use, if there is one.
    pub fn open(dirs: &Dirs, settings: &Settings) -> Result<Option<Store>> {
        Place::new(dirs, settings).open()
    }

    /// The store in use, made when there is none.
    pub fn bootstrap(dirs: &Dirs, settings: &Settings, progress: &dyn Progress) -> Result<Store> {
        Place::new(dirs, settings).bootstrap(progress)
    }

    /// Whose it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The version of its Nix.
    pub fn nix_version(&self) -> Version {
        match &self.kind {
            Kind::Host(h) => h.version,
            Kind::Own { version, .. } => *version,
        }
    }

    /// Where this host has the files of `/nix/store`.
    pub fn root_dir(&self) -> PathBuf {
        match &self.kind {
            Kind::Host(_) => "/nix/store".into(),
            Kind::Own { .. } => self.place.dirs.store().join("nix/store"),
        }
    }

    /// What the outer namespace of a machine must show: `nix` for an own store.
    pub fn outer_config(&self) -> outer::OuterConfig {
        outer::OuterConfig { nix: self.nix_dir() }
    }

    fn nix_dir(&self) -> Option<PathBuf> {
        matches!(self.kind, Kind::Own { .. }).then(|| self.place.dirs.store().join("nix"))
    }

    fn bin(&self) -> PathBuf {
        match &self.kind {
            Kind::Host(h) => h.bin.clone(),
            Kind::Own { dist, .. } => dist.join("bin"),
        }
    }

    /// Environment of the store's programs; `None` removes.
    fn environment(&self) -> Vec<(OsString, Option<OsString>)> {
        let set = |name: &str, value: OsString| (name.into(), Some(value));
        match &self.kind {
            Kind::Host(_) => {
                let mut all = vec![set("NIX_REMOTE", "daemon".into())];
                all.extend(given_certificates().and_then(git_certificates));
                all
            }
            Kind::Own { .. } => {
                let dir = self.place.dirs.store();
                let mut all =
                    vec![set("NIX_CONF_DIR", dir.join("etc").into()), set("NIX_BIN_DIR", self.bin().into())];
                // What a shell of the host may have set for a Nix of its own.
                let others = [
                    "NIX_REMOTE",
                    "NIX_STORE",
                    "NIX_STORE_DIR",
                    "NIX_STATE_DIR",
                    "NIX_LOG_DIR",
                    "NIX_PATH",
                    "NIX_CONFIG",
                ];
                all.extend(others.map(|n| (n.into(), None)));
                let given = given_certificates();
                if let Some(bundle) = given.clone().or_else(|| certificates().map(Into::into)) {
                    all.push(set("NIX_SSL_CERT_FILE", bundle));
                }
                all.extend(given.and_then(git_certificates));
                all
            }
        }
    }

    fn set_environment(&self, c: &mut Command) {
        for (name, value) in self.environment() {
            match value {
                Some(v) => c.env(name, v),
                None => c.env_remove(name),
            };
        }
    }

    fn plumbing(&self, verb: &str) -> Command {
        let mut words = self.place.plumbing.iter();
        let mut c = Command::new(words.next().map_or("codchi".as_ref(), |w| w.as_os_str()));
        c.args(words).arg(verb);
        c
    }

    /// As the owner of an own store whose folders are still to be made.
    pub(crate) fn initialiser(&self, tarball: Option<&Path>, program: &Path) -> Command {
        let mut c = self.plumbing("shell");
        c.args(["--as-root", "--init"]);
        if let Some(file) = tarball {
            c.arg("--unpack").arg(file);
        }
        if let Some(nix) = self.nix_dir() {
            c.arg("--nix").arg(nix);
        }
        c.arg("--").arg(program);
        self.set_environment(&mut c);
        c
    }

    /// A program of any kind where /nix is this store's.
    pub fn shell(&self, program: &Path, role: Role) -> Command {
        let mut c = match self.nix_dir() {
            None => Command::new(program),
            Some(nix) => {
                let mut c = self.plumbing("shell");
                c.arg("--nix").arg(nix);
                match role {
                    Role::Maintainer => c.arg("--as-root"),
                    Role::Caller => c.arg("--daemon").arg(self.bin().join("nix-daemon")),
                };
                c.arg("--").arg(program);
                c
            }
        };
        self.set_environment(&mut c);
        // Nix itself is at hand there, before any other the person has.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.bin()).chain(std::env::split_paths(&path));
        if let Ok(all) = std::env::join_paths(all) {
            c.env("PATH", all);
        }
        c
    }

    /// The endpoint of a machine: a service for its supervisor.
    pub fn endpoint(&self, name: &MachineName) -> Endpoint {
        let dirs = &self.place.dirs;
        let passes_on = self.passes_on();
        let mut environment = self.environment();
        if !passes_on {
            environment.push(("NIX_REMOTE".into(), None));
        }
        let machine = dirs.machine_runtime(name);
        let config = endpoint::Config {
            socket: machine.join("daemon/socket"),
            daemon: self.bin().join("nix-daemon"),
            state: self.endpoint_state(name),
            roots: if passes_on {
                endpoint::RootsAt::Indirect(dirs.state.join("roots").join(name))
            } else {
                endpoint::RootsAt::Store(endpoint::machine_roots(name.as_str()))
            },
            machine,
            environment,
        };
        Endpoint { config, role: if passes_on { outer::Role::Caller } else { outer::Role::Maintainer } }
    }

    /// Whether what machines ask for can only be asked of the host's daemon, because the store's files are not ours.
    fn passes_on(&self) -> bool {
        matches!(self.kind, Kind::Host(_)) && !outer::is_privileged()
    }

    fn endpoint_state(&self, name: &MachineName) -> PathBuf {
        let dirs = &self.place.dirs;
        match self.kind {
            Kind::Host(_) if self.passes_on() => dirs.state.join("endpoints").join(name),
            _ => Path::new("/nix/var/nix/codchi/endpoints").join(name),
        }
    }

    /// Where the links are that hold what was built inside a machine, as the store knows them.
    pub fn roots_of(&self, name: &MachineName) -> PathBuf {
        match self.endpoint(name).config.roots {
            endpoint::RootsAt::Store(dir) | endpoint::RootsAt::Indirect(dir) => dir,
        }
    }

    /// Drops all roots of a machine that is no more.
    pub fn forget_machine(&self, name: &MachineName) -> Result<()> {
        self.once(name, &["--forget".into()], &format!("drop the roots of `{name}`"))
    }

    /// Gives the roots that were made in a machine to another one with the same files: as copies, or only to that. May be
    /// repeated.
    pub fn hand_over_roots(&self, from: &MachineName, to: &MachineName, keep: bool) -> Result<()> {
        let state = self.endpoint(to).config.state;
        let mut args: Vec<std::ffi::OsString> =
            vec!["--to-roots".into(), self.roots_of(to).into(), "--to-state".into(), state.into()];
        args.extend(keep.then(|| "--keep".into()));
        self.once(from, &args, &format!("give the roots of `{from}` to `{to}`"))
    }

    fn once(&self, name: &MachineName, args: &[std::ffi::OsString], what: &str) -> Result<()> {
        let mut c = self.plumbing("serve");
        c.args(self.endpoint(name).config.to_args()).args(args);
        if let Some(nix) = self.nix_dir() {
            c.arg("--nix").arg(nix);
        }
        let out =
            c.output().map_err(|source| StoreError::System { what: "run the plumbing".into(), source })?;
        if out.status.success() {
            return Ok(());
        }
        let what = format!("{what}: {}", String::from_utf8_lossy(&out.stderr).trim());
        Err(StoreError::System { what, source: std::io::Error::other("the plumbing failed") })
    }

    /// `nix-store --gc`, ready for more arguments: deletes what no root holds and no process uses. A process that Nix cannot read
    /// does not keep it from that, unless the host's daemon collects.
    pub fn collector(&self) -> Command {
        let program = self.bin().join("nix-store");
        let mut c = match self.nix_dir() {
            None => Command::new(program),
            Some(nix) => {
                let mut c = self.plumbing("shell");
                c.args(["--as-root", "--collect", "--nix"]).arg(nix).arg("--").arg(program);
                c
            }
        };
        self.set_environment(&mut c);
        c.arg("--gc");
        c
    }

    /// Names, in the store, of all that a path of it needs at run time, itself included.
    pub fn closure(&self, path: &str) -> Result<Vec<String>> {
        let tried = |what: &str, source| StoreError::System { what: what.into(), source };
        let mut c = self.command("nix-store", Role::Caller);
        c.args(["--query", "--requisites", path]).stdin(std::process::Stdio::null());
        let out = c.output().map_err(|e| tried("run `nix-store`", e))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
            return Err(tried(&format!("read what `{path}` needs"), std::io::Error::other(said)));
        }
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(text.lines().filter_map(|l| l.rsplit('/').next()).map(String::from).collect())
    }

    /// Removes an own store with all its files; the host's is left alone. Nothing may be using it.
    pub fn remove(self) -> Result<()> {
        if matches!(self.kind, Kind::Own { .. }) {
            outer::remove_tree(&self.place.dirs.store())?;
        }
        Ok(())
    }
}

impl Launch for Store {
    fn command(&self, program: &str, role: Role) -> Command {
        self.shell(&self.bin().join(program), role)
    }

    fn host_path(&self, path: &StorePath) -> PathBuf {
        self.root_dir().join(path.base_name())
    }

    fn version(&self) -> Option<Version> {
        // A host's program can be of another version than its daemon.
        match &self.kind {
            Kind::Own { version, .. } => Some(*version),
            Kind::Host(_) => None,
        }
    }
}

/// The bundle of certificate authorities that the person names.
fn given_certificates() -> Option<OsString> {
    ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(|n| std::env::var_os(n).filter(|v| !v.is_empty()))
}

/// What makes git trust the certificates that the person names.
pub fn certificates_of_git() -> Option<(OsString, OsString)> {
    let (name, value) = git_certificates(given_certificates()?)?;
    value.map(|v| (name, v))
}

/// The same for git, which has a variable of its own.
fn git_certificates(bundle: OsString) -> Option<(OsString, Option<OsString>)> {
    std::env::var_os("GIT_SSL_CAINFO").is_none().then(|| ("GIT_SSL_CAINFO".into(), Some(bundle)))
}

/// The host's bundle of certificate authorities.
pub fn certificates() -> Option<&'static str> {
    [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ]
    .into_iter()
    .find(|p| Path::new(p).exists())
}
