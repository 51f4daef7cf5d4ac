//! Several byte streams over one, both ways: for a machine that is reached by a single port.
//!
//! Both sides run a [`Mux`]. Either opens channels, of a kind that tells the other what it leads to; each has a window, so that
//! one that nobody reads holds up no other. Each of its directions may end by itself. The host has a word besides, which the
//! machine hears before all that comes later. A frame is the channel (u32), the length (u16), the type and a mark, then that many
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
const TOO_MUCH: usize = 32 << 20;
/// Channels of one kind that a machine may have opened: what they lead to takes about as many. How many a host may, the agent says.
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
const WORD: u8 = 6;
const END: u8 = 7;

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
    kind: u8,
    /// Bytes for it that it has not taken yet.
    waiting: Vec<u8>,
    /// Bytes the other side is ready to take.
    credit: usize,
    /// The other side has closed it.
    closed: bool,
    /// Who is here takes no more, but may have said something last.
    deaf: bool,
    /// Who is here says no more.
    ended: bool,
    /// The other side's says no more; and who is here knows.
    heard_end: bool,
    told_end: bool,
}

impl Channel {
    fn new(fd: OwnedFd, kind: u8) -> Channel {
        Channel {
            fd,
            kind,
            waiting: Vec::new(),
            credit: WINDOW,
            closed: false,
            deaf: false,
            ended: false,
            heard_end: false,
            told_end: false,
        }
    }
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
    /// The host's word, on both sides: as it says it, and as it was heard.
    word: Option<Vec<u8>>,
}

/// What one descriptor given to poll is.
#[derive(Clone, Copy, Debug)]
pub enum Watched {
    /// The trunk.
    Trunk,
    /// A channel.
    Channel(u32),
}

/// What [`Mux::turn`] hands new channels of the other side to: their kind with what is said of them, and the stream they lead to,
/// if any.
pub type Answer<'a> = dyn FnMut(&[u8]) -> Option<OwnedFd> + 'a;

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
            word: None,
        })
    }

    /// Opens a channel that leads from a local stream: `what` is its kind, and bytes that say more of it.
    ///
    /// # Errors
    /// The stream cannot be made non-blocking.
    pub fn open(&mut self, what: &[u8], fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let id = self.next;
        self.next = self.next.wrapping_add(2);
        self.put(id, OPEN, what);
        self.channels.insert(id, Channel::new(fd, what.first().copied().unwrap_or_default()));
        Ok(())
    }

    /// Has the machine know this from now on, before it hears of any channel that is opened later. Of several words the last counts.
    pub fn say(&mut self, word: Vec<u8>) {
        if self.met {
            self.put(0, WORD, &word);
        }
        self.word = Some(word);
    }

    /// The host's word, once for each time it came.
    pub fn heard(&mut self) -> Option<Vec<u8>> {
        if self.side == Side::Machine { self.word.take() } else { None }
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
            if !c.closed && !c.ended && c.credit > 0 && self.out.len() < ENOUGH && self.met {
                events |= PollFlags::IN;
            }
            if !c.waiting.is_empty() {
                events |= PollFlags::OUT;
            }
            // One that says no more may go.
            if !events.is_empty() || c.ended && !c.closed {
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
        for (what, seen) in watched.iter().zip(seen).filter(|(_, s)| !s.is_empty()) {
            match what {
                Watched::Trunk => self.read_trunk(answer)?,
                Watched::Channel(id) => {
                    self.write_channel(*id);
                    self.read_channel(*id, seen.intersects(PollFlags::HUP | PollFlags::ERR));
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
        if let Some(word) = self.word.clone().filter(|_| self.side == Side::Host) {
            self.put(0, WORD, &word);
        }
    }

    fn take(&mut self, id: u32, kind: u8, payload: Vec<u8>, answer: &mut Answer<'_>) {
        match kind {
            OPEN => {
                let kind = payload.first().copied().unwrap_or_default();
                let same = |(id, c): &(&u32, &Channel)| self.is_theirs(**id) && c.kind == kind;
                let room = self.side == Side::Machine || self.channels.iter().filter(same).count() < CHANNELS;
                let may = room && self.is_theirs(id) && !self.channels.contains_key(&id);
                let fd = if may && !payload.is_empty() { answer(&payload) } else { None };
                match fd.filter(|fd| rustix::io::ioctl_fionbio(fd, true).is_ok()) {
                    Some(fd) => drop(self.channels.insert(id, Channel::new(fd, kind))),
                    None => self.put(id, CLOSE, &[]),
                }
            }
            DATA => {
                if let Some(c) = self.channels.get_mut(&id) {
                    // More than was asked for, or after the last, is no honest peer's: memory has an end.
                    if c.heard_end || c.waiting.len() + payload.len() > WINDOW {
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
            END => {
                if let Some(c) = self.channels.get_mut(&id) {
                    c.heard_end = true;
                    self.write_channel(id);
                }
            }
            WORD if self.side == Side::Machine => self.word = Some(payload),
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
        if c.waiting.is_empty() {
            if c.closed || c.ended && c.heard_end {
                self.channels.remove(&id);
                return;
            }
            if c.heard_end && !std::mem::replace(&mut c.told_end, true) {
                let _ = rustix::net::shutdown(&c.fd, rustix::net::Shutdown::Write);
            }
        }
        if done > 0 {
            self.put(id, CREDIT, &(done as u32).to_le_bytes());
        }
    }

    /// Takes what a channel says; `gone`: whoever is there takes nothing more either.
    fn read_channel(&mut self, id: u32, gone: bool) {
        let Some(c) = self.channels.get_mut(&id) else { return };
        if c.ended && gone && !c.closed {
            self.channels.remove(&id);
            self.put(id, CLOSE, &[]);
            return;
        }
        if c.closed || c.ended || c.credit == 0 {
            return;
        }
        let mut buffer = [0; CHUNK];
        let most = c.credit.min(CHUNK);
        match rustix::io::read(&c.fd, &mut buffer[..most]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) if !gone => {
                c.ended = true;
                self.put(id, END, &[]);
                self.write_channel(id);
            }
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
            host.open(&[1], its.into()).unwrap();
            mine.set_nonblocking(true).unwrap();
            near.push(mine);
        }
        let mut sent = 0;
        for round in 0..400 {
            turn(&mut host, &mut |_| None);
            turn(&mut machine, &mut |what| {
                assert_eq!(what, [1]);
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
        // One that is closed makes room; one of another kind needs none.
        a.write_all(&[frame(3, CLOSE, &[]), frame(999, OPEN, &[1]), frame(997, OPEN, &[2, 7])].concat())
            .unwrap();
        let mut kept = Vec::new();
        turn(&mut host, &mut |what| {
            let (theirs, its) = UnixStream::pair().unwrap();
            kept.push((what.to_vec(), theirs));
            Some(its.into())
        });
        assert!(host.channels.contains_key(&999) && host.channels.contains_key(&997));
        assert_eq!(kept[1].0, [2, 7]);
    }

    /// Two sides that have met.
    fn both() -> (Mux, Mux) {
        let (a, b) = UnixStream::pair().unwrap();
        let (host, machine) = (Mux::new(a.into(), Side::Host), Mux::new(b.into(), Side::Machine));
        let (mut host, mut machine) = (host.unwrap(), machine.unwrap());
        for _ in 0..4 {
            turn(&mut host, &mut |_| None);
            turn(&mut machine, &mut |_| None);
        }
        assert!(host.is_met() && machine.is_met());
        (host, machine)
    }

    #[test]
    fn a_question_that_ends_is_answered_and_who_goes_is_missed() {
        let (mut host, mut machine) = both();
        let mut far = Vec::new();
        let open = |machine: &mut Mux| {
            let (mine, its) = UnixStream::pair().unwrap();
            machine.open(&[3, 1], its.into()).unwrap();
            mine
        };
        let (mut asks, goes) = (open(&mut machine), open(&mut machine));
        let mut turns = |host: &mut Mux, machine: &mut Mux| {
            for _ in 0..10 {
                turn(machine, &mut |_| None);
                turn(host, &mut |_| {
                    let (theirs, its) = UnixStream::pair().unwrap();
                    far.push(theirs);
                    Some(its.into())
                });
            }
            far.iter().map(|f| f.try_clone().unwrap()).collect::<Vec<_>>()
        };
        asks.write_all(b"question").unwrap();
        asks.shutdown(std::net::Shutdown::Write).unwrap();
        goes.shutdown(std::net::Shutdown::Write).unwrap();
        let mut at = turns(&mut host, &mut machine);
        let mut text = String::new();
        at[0].read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), host.channels.len()), ("question", 2));
        at[0].write_all(b"answer").unwrap();
        at[0].shutdown(std::net::Shutdown::Write).unwrap();
        // It goes without an answer.
        drop(goes);
        turns(&mut host, &mut machine);
        let mut text = String::new();
        asks.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), host.channels.len(), machine.channels.len()), ("answer", 0, 0));
    }

    #[test]
    fn the_hosts_word_is_heard_before_what_comes_later_and_again_by_one_that_begins_anew() {
        let (mut host, mut machine) = both();
        assert_eq!(machine.heard(), None);
        host.say(vec![1]);
        host.say(vec![1, 2]);
        host.open(&[1], UnixStream::pair().unwrap().0.into()).unwrap();
        turn(&mut host, &mut |_| None);
        let mut opened = false;
        turn(&mut machine, &mut |_| {
            opened = true;
            None
        });
        assert!(opened);
        assert_eq!((machine.heard(), machine.heard(), host.heard()), (Some(vec![1, 2]), None, None));
        machine.say(vec![9]);
        let mut machine = Mux::new(machine.trunk, Side::Machine).unwrap();
        for _ in 0..4 {
            turn(&mut machine, &mut |_| None);
            turn(&mut host, &mut |_| None);
        }
        assert_eq!(machine.heard(), Some(vec![1, 2]));
        assert_eq!(host.word, Some(vec![1, 2]));
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
