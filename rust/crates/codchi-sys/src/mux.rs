//! Several byte streams over one, both ways: for a machine that is reached by a single port.
//!
//! Both sides run a [`Mux`]. Either opens channels, of a kind that tells the other what it leads to; each has a window, so that
//! one that nobody reads holds up no other. A frame is the channel (u32), the length (u16), the type and a mark, then that many
//! bytes, all little-endian. A side that begins anew says so first, in a frame that is found in whatever comes before it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// Bytes that may be on their way in a channel.
const WINDOW: usize = 256 << 10;
/// Bytes of a frame's payload.
const CHUNK: usize = 16 << 10;
/// Bytes that wait for the trunk before channels are read no more.
const ENOUGH: usize = 64 << 10;
/// Bytes that wait for a trunk whose other side only talks. Memory has an end.
const TOO_MUCH: usize = 64 << 20;
/// Channels that a machine may have opened: what they lead to takes about as many. How many a host may, the agent says.
const CHANNELS: usize = 100;
const HEADER: usize = 8;
/// Last byte of each header.
const MARK: u8 = 0xc7;
/// How a side begins.
const BEGIN: &[u8; 16] = b"\0\0\0\0\0\0\x01\xc7codchi\r\n";

const OPEN: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;

/// Which side of the trunk this is: both choose names for channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Outside the machine.
    Host,
    /// Inside.
    Machine,
}

struct Channel {
    fd: OwnedFd,
    /// Bytes for it that it has not taken yet.
    waiting: Vec<u8>,
    /// Bytes the other side is ready to take.
    credit: usize,
    /// The other side has closed it.
    closed: bool,
    /// Who is here takes no more, but may have said something last.
    deaf: bool,
}

/// One side of the trunk.
pub struct Mux {
    trunk: OwnedFd,
    side: Side,
    next: u32,
    channels: BTreeMap<u32, Channel>,
    arrived: Vec<u8>,
    out: Vec<u8>,
    /// Whether the other side's beginning was seen.
    met: bool,
    /// Whether one was ever.
    ever: bool,
}

/// What one descriptor given to poll is.
#[derive(Clone, Copy, Debug)]
pub enum Watched {
    /// The trunk.
    Trunk,
    /// A channel.
    Channel(u32),
}

/// What [`Mux::turn`] hands new channels of the other side to: their kind, and the stream they lead to, if any.
pub type Answer<'a> = dyn FnMut(u8) -> Option<OwnedFd> + 'a;

impl Mux {
    /// Begins, and says so.
    ///
    /// # Errors
    /// The trunk cannot be made non-blocking.
    pub fn new(trunk: OwnedFd, side: Side) -> io::Result<Mux> {
        rustix::io::ioctl_fionbio(&trunk, true)?;
        let next = u32::from(side == Side::Machine) + 2;
        let out = BEGIN.to_vec();
        Ok(Mux {
            trunk,
            side,
            next,
            channels: BTreeMap::new(),
            arrived: Vec::new(),
            out,
            met: false,
            ever: false,
        })
    }

    /// Opens a channel that leads from a local stream.
    ///
    /// # Errors
    /// The stream cannot be made non-blocking.
    pub fn open(&mut self, kind: u8, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let id = self.next;
        self.next = self.next.wrapping_add(2);
        self.put(id, OPEN, &[kind]);
        self.channels
            .insert(id, Channel { fd, waiting: Vec::new(), credit: WINDOW, closed: false, deaf: false });
        Ok(())
    }

    /// Whether the other side is there.
    pub fn is_met(&self) -> bool {
        self.met
    }

    /// Adds the descriptors that can move now.
    pub fn watch<'a>(&'a self, list: &mut Vec<PollFd<'a>>) -> Vec<Watched> {
        let mut added = vec![Watched::Trunk];
        let sending = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        list.push(PollFd::new(&self.trunk, PollFlags::IN | sending));
        for (id, c) in &self.channels {
            let mut events = PollFlags::empty();
            if !c.closed && c.credit > 0 && self.out.len() < ENOUGH && self.met {
                events |= PollFlags::IN;
            }
            if !c.waiting.is_empty() {
                events |= PollFlags::OUT;
            }
            if !events.is_empty() {
                list.push(PollFd::new(&c.fd, events));
                added.push(Watched::Channel(*id));
            }
        }
        added
    }

    /// Moves what is ready: `seen` is what poll answered for each of `watched`.
    ///
    /// # Errors
    /// The trunk is gone, or the other side takes nothing and goes on talking.
    pub fn turn(
        &mut self,
        watched: &[Watched],
        seen: &[PollFlags],
        answer: &mut Answer<'_>,
    ) -> io::Result<()> {
        for (what, _) in watched.iter().zip(seen).filter(|(_, s)| !s.is_empty()) {
            match what {
                Watched::Trunk => self.read_trunk(answer)?,
                Watched::Channel(id) => {
                    self.write_channel(*id);
                    self.read_channel(*id);
                }
            }
        }
        self.flush()?;
        if self.out.len() > TOO_MUCH {
            return Err(io::Error::other("the other side does not read"));
        }
        Ok(())
    }

    /// Whether the other side chose this name.
    fn is_theirs(&self, id: u32) -> bool {
        id % 2 != self.next % 2
    }

    fn put(&mut self, id: u32, kind: u8, payload: &[u8]) {
        self.out.extend_from_slice(&id.to_le_bytes());
        self.out.extend_from_slice(&(payload.len() as u16).to_le_bytes());
        self.out.extend_from_slice(&[kind, MARK]);
        self.out.extend_from_slice(payload);
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut done = 0;
        while done < self.out.len() {
            match rustix::io::write(&self.trunk, &self.out[done..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.out.drain(..done);
        Ok(())
    }

    fn read_trunk(&mut self, answer: &mut Answer<'_>) -> io::Result<()> {
        let mut buffer = [0; 4 * CHUNK];
        match rustix::io::read(&self.trunk, &mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.arrived.extend_from_slice(&buffer[..n]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let mut at = 0;
        loop {
            let rest = &self.arrived[at..];
            let begins = rest.starts_with(BEGIN);
            let header = rest.len() >= HEADER;
            let odd =
                header && (rest[7] != MARK || (rest[6] == BEGIN[6] && rest.len() >= BEGIN.len() && !begins));
            if !self.met || odd {
                // What was under way when the other side began is nobody's.
                self.met = false;
                match rest.windows(BEGIN.len()).position(|w| w == BEGIN) {
                    Some(found) => at += found,
                    None => {
                        at += rest.len().saturating_sub(BEGIN.len() - 1);
                        break;
                    }
                }
                at += BEGIN.len();
                self.begin();
                continue;
            }
            if begins {
                at += BEGIN.len();
                self.begin();
                continue;
            }
            if !header {
                break;
            }
            let id = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            let length = usize::from(u16::from_le_bytes([rest[4], rest[5]]));
            let kind = rest[6];
            // The beginning, not all of which is here.
            if kind == BEGIN[6] || rest.len() < HEADER + length {
                break;
            }
            let payload = rest[HEADER..HEADER + length].to_vec();
            at += HEADER + length;
            self.take(id, kind, payload, answer);
        }
        self.arrived.drain(..at);
        Ok(())
    }

    /// The other side begins: it knows nothing of earlier channels.
    fn begin(&mut self) {
        self.met = true;
        self.channels.clear();
        // It waits to hear the same from us, who said it to the one before. One side only, or both would answer for ever; and
        // it is the machine that begins twice.
        if std::mem::replace(&mut self.ever, true) && self.side == Side::Host {
            self.out.extend_from_slice(BEGIN);
        }
    }

    fn take(&mut self, id: u32, kind: u8, payload: Vec<u8>, answer: &mut Answer<'_>) {
        match kind {
            OPEN => {
                let open = self.channels.keys().filter(|id| self.is_theirs(**id)).count();
                let room = self.side == Side::Machine || open < CHANNELS;
                let may = room && self.is_theirs(id) && !self.channels.contains_key(&id);
                let fd = payload.first().filter(|_| may).and_then(|kind| answer(*kind));
                match fd.filter(|fd| rustix::io::ioctl_fionbio(fd, true).is_ok()) {
                    Some(fd) => {
                        let new =
                            Channel { fd, waiting: Vec::new(), credit: WINDOW, closed: false, deaf: false };
                        self.channels.insert(id, new);
                    }
                    None => self.put(id, CLOSE, &[]),
                }
            }
            DATA => {
                if let Some(c) = self.channels.get_mut(&id) {
                    // More than was asked for is no honest peer's: memory has an end.
                    if c.waiting.len() + payload.len() > WINDOW {
                        self.channels.remove(&id);
                        self.put(id, CLOSE, &[]);
                        return;
                    }
                    c.waiting.extend_from_slice(&payload);
                    self.write_channel(id);
                }
            }
            CREDIT => {
                if let (Some(c), Ok(bytes)) = (self.channels.get_mut(&id), <[u8; 4]>::try_from(&payload[..]))
                {
                    c.credit = c.credit.saturating_add(u32::from_le_bytes(bytes) as usize).min(WINDOW);
                }
            }
            CLOSE => {
                if let Some(c) = self.channels.get_mut(&id) {
                    c.closed = true;
                    self.write_channel(id);
                }
            }
            _ => {}
        }
    }

    /// Gives a channel what waits for it, and closes it when that was all.
    fn write_channel(&mut self, id: u32) {
        let Some(c) = self.channels.get_mut(&id) else { return };
        let mut done = 0;
        while done < c.waiting.len() && !c.deaf {
            match rustix::io::write(&c.fd, &c.waiting[done..]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => c.deaf = true,
            }
        }
        if c.deaf {
            c.waiting.clear();
        } else {
            c.waiting.drain(..done);
        }
        if c.closed && c.waiting.is_empty() {
            self.channels.remove(&id);
        } else if done > 0 {
            self.put(id, CREDIT, &(done as u32).to_le_bytes());
        }
    }

    fn read_channel(&mut self, id: u32) {
        let Some(c) = self.channels.get_mut(&id) else { return };
        if c.closed || c.credit == 0 {
            return;
        }
        let mut buffer = [0; CHUNK];
        let most = c.credit.min(CHUNK);
        match rustix::io::read(&c.fd, &mut buffer[..most]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => {
                self.channels.remove(&id);
                self.put(id, CLOSE, &[]);
            }
            Ok(n) => {
                c.credit -= n;
                self.put(id, DATA, &buffer[..n]);
            }
        }
    }
}

impl AsFd for Mux {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.trunk.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::poll;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn turn(mux: &mut Mux, answer: &mut Answer<'_>) {
        let (watched, seen) = {
            let mut list = Vec::new();
            let watched = mux.watch(&mut list);
            poll(&mut list, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
            (watched, list.iter().map(PollFd::revents).collect::<Vec<_>>())
        };
        mux.turn(&watched, &seen, answer).unwrap();
    }

    #[test]
    fn several_streams_go_over_one_and_one_that_nobody_reads_holds_up_no_other() {
        let (a, b) = UnixStream::pair().unwrap();
        // What an earlier side left in the port.
        (&a).write_all(b"rest of a frame").unwrap();
        let mut host = Mux::new(a.into(), Side::Host).unwrap();
        let mut machine = Mux::new(b.into(), Side::Machine).unwrap();
        let mut far = Vec::new();
        for _ in 0..4 {
            turn(&mut host, &mut |_| None);
            turn(&mut machine, &mut |_| None);
        }
        assert!(host.is_met() && machine.is_met());
        let mut near = Vec::new();
        for _ in 0..2 {
            let (mine, its) = UnixStream::pair().unwrap();
            host.open(1, its.into()).unwrap();
            mine.set_nonblocking(true).unwrap();
            near.push(mine);
        }
        let mut sent = 0;
        for round in 0..400 {
            turn(&mut host, &mut |_| None);
            turn(&mut machine, &mut |kind| {
                assert_eq!(kind, 1);
                let (theirs, its) = UnixStream::pair().unwrap();
                far.push(theirs);
                Some(its.into())
            });
            // Nobody reads the first.
            if let Ok(n) = near[0].write(&[7; 8192]) {
                sent += n;
            }
            if round == 200 {
                near[1].write_all(b"hello").unwrap();
            }
        }
        assert!(sent > WINDOW);
        let mut word = [0; 5];
        far[1].read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        // What nobody read there does not cost the last word.
        near[1].write_all(b"too late").unwrap();
        far[1].write_all(b"bye").unwrap();
        drop(far.remove(1));
        for _ in 0..20 {
            turn(&mut machine, &mut |_| None);
            turn(&mut host, &mut |_| None);
        }
        let mut text = String::new();
        near[1].set_nonblocking(false).unwrap();
        near[1].read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
    }

    fn frame(id: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut f = id.to_le_bytes().to_vec();
        f.extend((payload.len() as u16).to_le_bytes());
        f.extend([kind, MARK]);
        f.extend(payload);
        f
    }

    #[test]
    fn the_other_side_opens_only_so_many_channels_and_none_of_ours() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut host = Mux::new(b.into(), Side::Host).unwrap();
        a.write_all(BEGIN).unwrap();
        let mut said = frame(2, OPEN, &[1]);
        for n in 0..CHANNELS as u32 + 50 {
            said.extend(frame(2 * n + 3, OPEN, &[1]));
        }
        a.write_all(&said).unwrap();
        let mut far = Vec::new();
        for _ in 0..4 {
            turn(&mut host, &mut |_| {
                let (theirs, its) = UnixStream::pair().unwrap();
                far.push(theirs);
                Some(its.into())
            });
        }
        assert_eq!((far.len(), host.channels.len()), (CHANNELS, CHANNELS));
        let mut heard = vec![0; BEGIN.len() + 51 * HEADER];
        a.read_exact(&mut heard).unwrap();
        assert_eq!(heard[BEGIN.len()..][..HEADER], frame(2, CLOSE, &[]));
        // One that is closed makes room.
        a.write_all(&[frame(3, CLOSE, &[]), frame(999, OPEN, &[1])].concat()).unwrap();
        turn(&mut host, &mut |_| Some(UnixStream::pair().unwrap().0.into()));
        assert!(host.channels.contains_key(&999));
    }

    #[test]
    fn one_that_only_talks_is_left() {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        let mut host = Mux::new(b.into(), Side::Host).unwrap();
        let said = BEGIN.repeat(4096);
        let mut at = 0;
        let done = (0..10_000).find_map(|_| {
            at = (at + (&a).write(&said[at..]).unwrap_or(0)) % said.len();
            host.turn(&[Watched::Trunk], &[PollFlags::IN], &mut |_| None).err()
        });
        assert!(done.is_some());
        assert!(host.out.len() < 2 * TOO_MUCH);
    }

    #[test]
    fn only_the_host_answers_a_beginning_after_the_first() {
        for (side, answers) in [(Side::Host, 1), (Side::Machine, 0)] {
            let (mut a, b) = UnixStream::pair().unwrap();
            let mut mux = Mux::new(b.into(), side).unwrap();
            a.write_all(&BEGIN.repeat(2)).unwrap();
            turn(&mut mux, &mut |_| None);
            drop(mux);
            let mut heard = Vec::new();
            a.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, BEGIN.repeat(1 + answers));
        }
    }
}
