//! Sockets that lead to the host's session: variables by which programs find them, and git's way to ask the host for passwords.
//! Where a machine is reached by a port, they are the agent's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use codchi_core::session::Channel;

use crate::environment::Environment;
use crate::error::Error;
use crate::server;
use crate::user::User;

/// The argument with which git runs this program as its credential helper.
pub const GIT: &str = "--git-credential";
/// Where the sockets are.
const HOST: &str = "/run/codchi/host";
/// Bytes of a question, and of an answer.
const LIMIT: u64 = 64 << 10;

/// The sockets of a machine that is reached by a port.
pub struct Sockets {
    default_user: Option<String>,
    open: BTreeMap<Channel, UnixListener>,
}

impl Sockets {
    /// None is open; those of an earlier agent are gone.
    pub fn new(default_user: Option<String>) -> Sockets {
        for channel in Channel::ALL {
            remove(channel);
        }
        Sockets { default_user, open: BTreeMap::new() }
    }

    /// Has those open that the host has, by their numbers. Of one that cannot be opened the log tells.
    pub fn follow(&mut self, numbers: &[u8]) {
        let wanted: Vec<Channel> = numbers.iter().filter_map(|n| Channel::numbered(*n)).collect();
        self.open.retain(|channel, _| {
            let stays = wanted.contains(channel);
            if !stays {
                remove(*channel);
            }
            stays
        });
        for channel in wanted {
            if let Entry::Vacant(free) = self.open.entry(channel) {
                match listen(channel, self.default_user.as_deref()) {
                    Ok(listener) => drop(free.insert(listener)),
                    Err(e) => {
                        let _ = writeln!(std::io::stderr(), "codchi-agent: {e}");
                    }
                }
            }
        }
    }

    /// Those that are open.
    pub fn listeners(&self) -> impl Iterator<Item = (Channel, &UnixListener)> {
        self.open.iter().map(|(c, l)| (*c, l))
    }

    /// Forgets them, in a process that does not serve them.
    pub fn forget(&mut self) {
        self.open.clear();
    }
}

fn remove(channel: Channel) {
    let _ = codchi_fs::remove_if_exists(Path::new(HOST).join(channel.file()));
}

/// A socket that the machine's user may use, and its root.
fn listen(channel: Channel, default_user: Option<&str>) -> Result<UnixListener, Error> {
    let user = User::default(default_user)?;
    server::listen(Path::new(HOST), channel.file(), 0o600, Some((user.uid, user.gid)))
}

/// Lays the variables over the environment of a command of the machine's user, whose the sockets are. What is set stays.
pub fn overlay(env: &mut Environment, user: &User, default_user: Option<&str>) {
    if default_user != Some(user.name.as_str()) {
        return;
    }
    for channel in Channel::ALL {
        if let Some((name, value)) = channel.variable()
            && rustix::fs::stat(Path::new(HOST).join(channel.file())).is_ok()
        {
            env.entry(name.into()).or_insert_with(|| value.into());
        }
    }
}

/// Answers git, as gitcredentials(7) wants it, with what the host says; with nothing where the host says nothing.
pub fn git_credential(operation: &[u8]) -> Result<(), Error> {
    // What git learns here is not the host's to remember.
    if operation != b"get" {
        return Ok(());
    }
    let mut question = Vec::new();
    let read = Error::system("read git's question");
    std::io::stdin().lock().take(LIMIT).read_to_end(&mut question).map_err(read)?;
    let Ok(mut host) = UnixStream::connect(Path::new(HOST).join(Channel::GitCredentials.file())) else {
        return Ok(());
    };
    let failed = Error::system("ask the host");
    let mut answer = Vec::new();
    host.write_all(&question)
        .and_then(|()| host.shutdown(std::net::Shutdown::Write))
        .and_then(|()| host.take(LIMIT).read_to_end(&mut answer))
        .map_err(failed)?;
    let done = std::io::stdout().write_all(&answer).map_err(Error::system("answer git"));
    codchi_sys::memory::wipe(&mut answer);
    done
}
