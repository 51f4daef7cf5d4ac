//! Sockets that lead to the host's session: variables by which programs find them, and git's way to ask the host for passwords.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use codchi_core::session::Channel;

use crate::environment::Environment;
use crate::error::Error;
use crate::user::User;

/// The argument with which git runs this program as its credential helper.
pub const GIT: &str = "--git-credential";
/// Where the sockets are.
const HOST: &str = "/run/codchi/host";
/// Bytes of a question, and of an answer.
const LIMIT: u64 = 64 << 10;

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
