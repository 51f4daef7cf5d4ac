//! What engines of this family, which began with LXD, call differently.

use std::path::{Path, PathBuf};

use crate::Info;

/// One engine.
#[derive(Debug)]
pub struct Dialect {
    /// What the driver is; its name is that of its folder on the Nix side, too.
    pub info: Info,
    /// For people.
    pub title: &'static str,
    /// Where distributions have the daemon's socket.
    pub sockets: &'static [&'static str],
    /// The variables that say where the socket is, and where the daemon's folder is.
    pub variables: (Option<&'static str>, &'static str),
    /// The variable that says where its client keeps what it knows, and where that is else, in the home.
    pub client_folders: (&'static str, &'static [&'static str]),
    /// Who may use the socket.
    pub group: &'static str,
    /// Its own client, for hints.
    pub client: &'static str,
    /// The programs by which it is known to be installed.
    pub programs: &'static [&'static str],
    /// How it is installed.
    pub install: &'static str,
    /// How its daemon is started.
    pub start: &'static str,
    /// The oldest version that does what is asked of it.
    pub oldest: (u64, u64),
    /// Whether it shows mounts with mapped owners, for which the kernel has to have idmapped mounts.
    pub shifts: bool,
    /// The key that gives a machine access to the engine.
    pub guest_api: &'static str,
    /// Whether it makes instances without an image; one without anything in it is given to it where it does not.
    pub vacant: bool,
}

impl Dialect {
    /// The engine's socket: as its own client finds it.
    pub fn socket(&self) -> PathBuf {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(socket) = self.variables.0.and_then(var) {
            return socket;
        }
        if let Some(dir) = var(self.variables.1) {
            return dir.join("unix.socket");
        }
        let mut places = self.sockets.iter().map(Path::new);
        let there = places.clone().find(|p| p.exists());
        there.or_else(|| places.next_back()).unwrap_or(Path::new("")).into()
    }

    /// Where the engine's client keeps what it knows: the remotes, and the certificate by which they know the caller.
    pub fn client_dir(&self, home: &Path) -> PathBuf {
        let (variable, places) = self.client_folders;
        if let Some(dir) = std::env::var_os(variable).filter(|v| !v.is_empty()) {
            return dir.into();
        }
        let mut places = places.iter().map(|place| home.join(place));
        let first = places.next().unwrap_or_default();
        std::iter::once(first.clone()).chain(places).find(|p| p.exists()).unwrap_or(first)
    }
}
