//! Secrets for the next life of a machine whose memory ends with it: whoever looks after the machine keeps them, and is told of
//! others on a socket in the runtime directory, which only the caller can enter.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use codchi_secrets::Bundle;

use crate::error::{Doing, Error, Result};
use crate::start::through_descriptor;

const SOCKET: &str = "keep";
/// How long the other side may take with what it says.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who keeps them.
pub(crate) struct Keeper(UnixListener);

impl Keeper {
    /// Listens in a runtime directory.
    pub fn open(dir: &Path) -> Result<Keeper> {
        codchi_fs::remove_if_exists(dir.join(SOCKET))?;
        let listener = through_descriptor(dir, SOCKET, UnixListener::bind)?;
        listener.set_nonblocking(true).doing("listen for secrets")?;
        Ok(Keeper(listener))
    }

    /// What somebody says: whether others stay, and what there is from now on.
    pub fn hear(&self, renew: &mut dyn FnMut(Bundle, bool)) {
        while let Ok((mut stream, _)) = self.0.accept() {
            // Who says it only half has said nothing.
            if let Some((secrets, others_stay)) = heard(&mut stream) {
                renew(secrets, others_stay);
                let _ = stream.write_all(b"k");
            }
        }
    }

    /// Nobody listens any more.
    pub fn close(&self, dir: &Path) {
        let _ = codchi_fs::remove_if_exists(dir.join(SOCKET));
    }
}

fn heard(stream: &mut UnixStream) -> Option<(Bundle, bool)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut stays = [0];
    stream.read_exact(&mut stays).ok()?;
    Some((Bundle::receive(stream).ok()?, stays != [0]))
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells whoever looks after a machine which secrets its next life gets; where what it has stays, there is nobody to tell.
///
/// # Errors
/// Somebody is there and does not take them.
pub fn tell(dir: &Path, secrets: &Bundle, others_stay: bool) -> Result<()> {
    if !dir.join(SOCKET).exists() {
        return Ok(());
    }
    let mut stream = match through_descriptor(dir, SOCKET, |path| match UnixStream::connect(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        stream => stream.map(Some),
    })? {
        Some(stream) => stream,
        None => return Ok(()),
    };
    let told = "tell of new secrets";
    stream.set_read_timeout(Some(PATIENCE)).doing(told)?;
    stream.write_all(&[u8::from(others_stay)]).doing(told)?;
    secrets.send(&mut stream).map_err(|e| Error::Told(format!("cannot {told}: {e}")))?;
    stream.read_exact(&mut [0]).doing(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codchi_secrets::Private;

    fn bundle(pairs: &[(&str, &str)]) -> Bundle {
        let mut all = Bundle::new();
        for (name, value) in pairs {
            all.insert(*name, Private::copy(value.as_bytes()).unwrap());
        }
        all
    }

    #[test]
    fn whoever_keeps_them_is_told_and_half_of_it_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody listens: nothing is to be told.
        tell(dir.path(), &bundle(&[("A", "1")]), false).unwrap();
        let keeper = Keeper::open(dir.path()).unwrap();
        let path = dir.path().to_path_buf();
        let teller = std::thread::spawn(move || {
            let mut half = UnixStream::connect(path.join(SOCKET)).unwrap();
            half.write_all(&[1, 9, 0, 0, 0, 1]).unwrap();
            drop(half);
            tell(&path, &bundle(&[("B", "2")]), true).unwrap();
        });
        let mut kept = bundle(&[("A", "1")]);
        while kept.get("B").is_none() {
            let mut fds = [rustix::event::PollFd::new(&keeper, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            keeper.hear(&mut |news, stay| kept.renew(news, stay));
        }
        teller.join().unwrap();
        assert_eq!(kept, bundle(&[("A", "1"), ("B", "2")]));
        keeper.close(dir.path());
        tell(dir.path(), &kept, false).unwrap();
    }
}
