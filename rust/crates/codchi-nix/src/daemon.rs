//! Talking to a Nix daemon: the few words of its worker protocol (`worker-protocol.hh`) that Codchi uses where a process for each
//! would take too long.
//!
//! Numbers are of 64 bits, little endian; a text is its length, its bytes, and zeros up to a multiple of eight. Before each answer come
//! messages, of which the last one says that the answer follows or why there is none.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{StorePath, Version};

const HELLO: u64 = 0x6e69_7863;
const ANSWER: u64 = 0x6478_696f;
/// What we say we speak: the oldest protocol in which the daemon names its version and no features are negotiated.
const PROTOCOL: u64 = 0x0121;
/// The longest text that is taken from a daemon, in bytes.
const TEXT: u64 = 1 << 20;

mod operation {
    pub const IS_VALID_PATH: u64 = 1;
    pub const ADD_TEMP_ROOT: u64 = 11;
    pub const ADD_INDIRECT_ROOT: u64 = 12;
}

mod message {
    pub const LINE: u64 = 0x6f6c_6d67;
    pub const LAST: u64 = 0x616c_7473;
    pub const ERROR: u64 = 0x6378_7470;
    pub const START: u64 = 0x5354_5254;
    pub const STOP: u64 = 0x5354_4f50;
    pub const RESULT: u64 = 0x5253_4c54;
}

fn odd(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// A connection to a daemon.
pub struct Daemon<S> {
    stream: S,
    version: Version,
}

impl<S: Read + Write> Daemon<S> {
    /// Greets the daemon at the other end, which must be of Nix 2.15 or later.
    pub fn greet(mut stream: S) -> io::Result<Daemon<S>> {
        stream.write_all(&HELLO.to_le_bytes())?;
        stream.flush()?;
        if number(&mut stream)? != ANSWER {
            return Err(odd("it does not speak Nix's protocol"));
        }
        if number(&mut stream)? < PROTOCOL {
            // The protocol of Nix 2.14 and older, which names no version.
            return Err(odd("it is older than Nix 2.15"));
        }
        stream.write_all(&PROTOCOL.to_le_bytes())?;
        // No CPU affinity, and a word that is no longer used.
        stream.write_all(&[0; 16])?;
        stream.flush()?;
        let named = text(&mut stream)?;
        let version = named.parse().map_err(|()| odd(&format!("its version is `{named}`")))?;
        Ok(Daemon { stream, version })
    }

    /// The daemon's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Waits for the end of the greeting: whether the daemon lets its caller in. To be done once, before anything is asked.
    pub fn admitted(&mut self) -> io::Result<()> {
        self.answered()
    }

    /// Holds a path as long as the connection lasts, and says whether the store has it.
    pub fn hold(&mut self, path: &StorePath) -> io::Result<bool> {
        self.ask(operation::ADD_TEMP_ROOT, path.as_str().as_bytes())?;
        self.ask(operation::IS_VALID_PATH, path.as_str().as_bytes()).map(|valid| valid != 0)
    }

    /// Registers a link to a store path, by its absolute path, as a root.
    pub fn add_indirect_root(&mut self, link: &Path) -> io::Result<()> {
        self.ask(operation::ADD_INDIRECT_ROOT, link.as_os_str().as_bytes()).map(drop)
    }

    /// Asks something about a text, whose answer is a number.
    fn ask(&mut self, operation: u64, about: &[u8]) -> io::Result<u64> {
        let mut words = operation.to_le_bytes().to_vec();
        words.extend((about.len() as u64).to_le_bytes());
        words.extend(about);
        words.resize(words.len().next_multiple_of(8), 0);
        self.stream.write_all(&words)?;
        self.stream.flush()?;
        self.answered()?;
        number(&mut self.stream)
    }

    /// Reads messages up to the last one.
    fn answered(&mut self) -> io::Result<()> {
        let s = &mut self.stream;
        loop {
            match number(s)? {
                message::LAST => return Ok(()),
                message::LINE => drop(text(s)?),
                message::STOP => drop(number(s)?),
                message::START => {
                    // Its number, level and kind, what it is called, what it is about, and what it is part of.
                    numbers(s, 3)?;
                    text(s)?;
                    fields(s)?;
                    number(s)?;
                }
                message::RESULT => {
                    numbers(s, 2)?;
                    fields(s)?;
                }
                message::ERROR => {
                    // Its kind, level and name come before what it says.
                    text(s)?;
                    number(s)?;
                    text(s)?;
                    return Err(io::Error::other(text(s)?));
                }
                _ => return Err(odd("it says what no daemon says")),
            }
        }
    }
}

fn number(s: &mut impl Read) -> io::Result<u64> {
    let mut b = [0; 8];
    s.read_exact(&mut b)?;
    Ok(u64::from_le_bytes(b))
}

/// Passes over numbers.
fn numbers(s: &mut impl Read, count: usize) -> io::Result<()> {
    (0..count).try_for_each(|_| number(s).map(drop))
}

fn text(s: &mut impl Read) -> io::Result<String> {
    let length = number(s)?;
    if length > TEXT {
        return Err(odd("it says too much at once"));
    }
    let mut bytes = vec![0; (length as usize).next_multiple_of(8)];
    s.read_exact(&mut bytes)?;
    bytes.truncate(length as usize);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn fields(s: &mut impl Read) -> io::Result<()> {
    for _ in 0..number(s)? {
        match number(s)? {
            0 => drop(number(s)?),
            1 => drop(text(s)?),
            _ => return Err(odd("it says what no daemon says")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Talk(io::Cursor<Vec<u8>>, Vec<u8>);
    impl Read for Talk {
        fn read(&mut self, b: &mut [u8]) -> io::Result<usize> {
            self.0.read(b)
        }
    }
    impl Write for Talk {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.1.write(b)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a daemon says: numbers, and texts.
    fn said(parts: &[Result<u64, &str>]) -> Talk {
        let mut bytes = Vec::new();
        for part in parts {
            match part {
                Ok(n) => bytes.extend(n.to_le_bytes()),
                Err(text) => {
                    bytes.extend((text.len() as u64).to_le_bytes());
                    bytes.extend(text.as_bytes());
                    bytes.resize(bytes.len().next_multiple_of(8), 0);
                }
            }
        }
        Talk(io::Cursor::new(bytes), Vec::new())
    }

    #[test]
    fn a_daemon_names_its_version_and_anything_else_is_refused() {
        let greet = |parts: &[Result<u64, &str>]| Daemon::greet(said(parts)).map(|d| d.version().to_string());
        assert_eq!(greet(&[Ok(ANSWER), Ok(0x126), Err("2.26.3")]).unwrap(), "2.26.3");
        for bad in [&[Ok(ANSWER), Ok(0x120)][..], &[Ok(7); 3], &[Ok(ANSWER), Ok(0x126), Ok(u64::MAX)], &[]] {
            assert!(greet(bad).is_err(), "{bad:?}");
        }
        assert!(greet(&[Ok(ANSWER), Ok(0x126), Ok(6)]).is_err());
        assert!(Daemon::greet(Talk(io::Cursor::new(b"HTTP/1.1 400".to_vec()), Vec::new())).is_err());
    }

    #[test]
    fn messages_before_an_answer_are_passed_over_and_a_refusal_is_told() {
        let mut parts = vec![Ok(ANSWER), Ok(0x126), Err("2.26.3"), Ok(message::LAST)];
        parts.extend([Ok(message::LINE), Err("a line\n")]);
        parts.extend([
            Ok(message::START),
            Ok(1),
            Ok(2),
            Ok(3),
            Err("copying"),
            Ok(2),
            Ok(0),
            Ok(9),
            Ok(1),
            Err("x"),
            Ok(0),
        ]);
        parts.extend([Ok(message::RESULT), Ok(1), Ok(105), Ok(1), Ok(0), Ok(4), Ok(message::STOP), Ok(1)]);
        parts.extend([Ok(message::LAST), Ok(1)]);
        parts.extend([Ok(message::ERROR), Err("Error"), Ok(0), Err("Error"), Err("no such path")]);
        let mut daemon = Daemon::greet(said(&parts)).unwrap();
        daemon.admitted().unwrap();
        daemon.add_indirect_root(Path::new("/home/me/result")).unwrap();
        let mut asked = operation::ADD_INDIRECT_ROOT.to_le_bytes().to_vec();
        asked.extend(15_u64.to_le_bytes());
        asked.extend(b"/home/me/result\0");
        assert!(daemon.stream.1.ends_with(&asked));
        assert_eq!(daemon.add_indirect_root(Path::new("/x")).unwrap_err().to_string(), "no such path");
    }
}
