//! The protocol between the host and the agent in a machine.
//!
//! A frame is a length (u32, little endian, of what follows the type, at most 1 MiB), a type (u8) and a payload. Control
//! payloads are JSON. Where the connection is a unix socket, the agent sends the ends of its pipes or pty with
//! [`FrameType::Started`] (SCM_RIGHTS); where it is a byte stream (virtual machines), data travels in frames, at most
//! [`WINDOW`] bytes of each stream ahead of what the receiver has given back with [`FrameType::Credit`].
//!
//! A conversation: the host sends Hello and Exec without waiting; the agent answers Hello, then Started or Failure; then
//! Signal and WindowSize go one way, data and Credit both, and Exit ends it; or Failure, when the program could not be run
//! after all. Closing the connection before is a hang-up.
//!
//! Or the host sends Hello and Deliver: the values of the machine's secrets, which the agent puts in place and answers with
//! Delivered or Failure.

use serde::{Deserialize, Serialize};

/// Protocol version that both sides name in their hello.
pub const VERSION: u32 = 1;
/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Largest message put together from [`FrameType::Part`] frames, in bytes: room for the largest argument list of Linux as JSON.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Bytes of a stream that may be under way unacknowledged.
pub const WINDOW: usize = 256 << 10;
/// Bytes before the payload.
pub const HEADER: usize = 5;

/// Where a machine is reached by a port: the channels that the host opens, each a connection to the agent.
pub const AGENT_CHANNEL: u8 = 1;
/// The channels that the machine opens, each a connection to the host's store.
pub const STORE_CHANNEL: u8 = 2;
/// Those that the machine opens to the caller's session. A number follows, of those that the host's word has.
pub const SESSION_CHANNEL: u8 = 3;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// [`Hello`], first in both directions.
    Hello = 1,
    /// [`Exec`], host to agent.
    Exec = 2,
    /// [`Started`], agent to host.
    Started = 3,
    /// [`Exit`], agent to host, last.
    Exit = 4,
    /// [`WindowSize`], host to agent.
    WindowSize = 5,
    /// [`Signal`], host to agent.
    Signal = 6,
    /// [`Failure`], agent to host: the command was not started.
    Failure = 7,
    /// Bytes for the command's standard input; empty: end of file. Streams only.
    Stdin = 8,
    /// Bytes of its standard output, or its terminal. Empty: nobody reads or writes it any more. Streams only, both directions.
    Stdout = 9,
    /// Bytes of its standard error, as [`FrameType::Stdout`].
    Stderr = 10,
    /// The beginning of the payload of the next frame of another type.
    Part = 11,
    /// [`Credit`]: the receiver of a stream has dealt with so many bytes. Streams only.
    Credit = 12,
    /// [`Delivery`], host to agent, in place of Exec.
    Deliver = 13,
    /// [`Delivered`], agent to host, last.
    Delivered = 14,
}

impl TryFrom<u8> for FrameType {
    type Error = u8;
    fn try_from(v: u8) -> Result<Self, u8> {
        Ok(match v {
            1 => FrameType::Hello,
            2 => FrameType::Exec,
            3 => FrameType::Started,
            4 => FrameType::Exit,
            5 => FrameType::WindowSize,
            6 => FrameType::Signal,
            7 => FrameType::Failure,
            8 => FrameType::Stdin,
            9 => FrameType::Stdout,
            10 => FrameType::Stderr,
            11 => FrameType::Part,
            12 => FrameType::Credit,
            13 => FrameType::Deliver,
            14 => FrameType::Delivered,
            other => return Err(other),
        })
    }
}

/// What the other side sent that the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A length above [`MAX_PAYLOAD`], or parts above the reader's limit.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// A type this version does not know.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A payload that is not what its type says.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// The kind of payload.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A frame that has no place here.
    #[error("unexpected frame {0:?}")]
    Unexpected(FrameType),
}

/// One frame, its parts joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameType,
    /// The bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads a JSON payload.
    pub fn json<'a, T: Deserialize<'a>>(&'a self, what: &'static str) -> Result<T, ProtocolError> {
        serde_json::from_slice(&self.payload)
            .map_err(|e| ProtocolError::Malformed { what, why: e.to_string() })
    }
}

/// Appends one frame; a payload above [`MAX_PAYLOAD`] is preceded by parts.
pub fn put(out: &mut Vec<u8>, kind: FrameType, mut payload: &[u8]) {
    let mut one = |kind: FrameType, payload: &[u8]| {
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.push(kind as u8);
        out.extend_from_slice(payload);
    };
    while payload.len() > MAX_PAYLOAD {
        let (part, rest) = payload.split_at(MAX_PAYLOAD);
        one(FrameType::Part, part);
        payload = rest;
    }
    one(kind, payload);
}

/// Appends one frame with a JSON payload.
pub fn put_json<T: Serialize>(
    out: &mut Vec<u8>,
    kind: FrameType,
    what: &'static str,
    value: &T,
) -> Result<(), ProtocolError> {
    let json =
        serde_json::to_vec(value).map_err(|e| ProtocolError::Malformed { what, why: e.to_string() })?;
    if json.len() > MAX_MESSAGE {
        return Err(ProtocolError::TooLong(json.len()));
    }
    put(out, kind, &json);
    Ok(())
}

/// Turns the bytes of a connection into frames. It holds at most one frame and the parts before it.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    parts: Vec<u8>,
    max_message: usize,
}

impl Decoder {
    /// A decoder that refuses messages above `max_message` bytes.
    pub fn new(max_message: usize) -> Self {
        Decoder { buffer: Vec::new(), start: 0, parts: Vec::new(), max_message }
    }

    /// Adds bytes that arrived. Take the frames out before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. After an error the connection is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        loop {
            let rest = &self.buffer[self.start..];
            let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = FrameType::try_from(header[4]).map_err(ProtocolError::UnknownType)?;
            let total = length.saturating_add(self.parts.len());
            if length > MAX_PAYLOAD || total > self.max_message {
                return Err(ProtocolError::TooLong(total));
            }
            let Some(payload) = rest.get(..length) else { return Ok(None) };
            self.start += HEADER + length;
            if kind == FrameType::Part {
                self.parts.extend_from_slice(payload);
                continue;
            }
            let mut whole = std::mem::take(&mut self.parts);
            whole.extend_from_slice(payload);
            return Ok(Some(Frame { kind, payload: whole }));
        }
    }
}

/// First frame of each side.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub proto: u32,
    /// From the host: descriptors cannot travel here, data goes in frames.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
}

/// Columns and rows of a terminal.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Run a command.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The command and its arguments, byte for byte (each a list of bytes where it is not UTF-8). Empty: the user's login shell.
    pub argv: Vec<Bytes>,
    /// Variables laid over the login environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(Bytes, Bytes)>,
    /// Working directory; none: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Bytes>,
    /// User name; none: the machine's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The terminal to make; none: pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// With a terminal: standard error is a pipe beside it, because the caller's goes elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stderr_apart: bool,
}

/// Text where it is UTF-8, a list of bytes where it is not.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl Bytes {
    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Bytes::Text(s) => s.as_bytes(),
            Bytes::Raw(b) => b,
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Self {
        match std::str::from_utf8(b) {
            Ok(s) => Bytes::Text(s.into()),
            Err(_) => Bytes::Raw(b.into()),
        }
    }
}

/// The command runs, or is about to. On a unix socket the descriptors come with it: stdin, stdout, stderr; or the pty, and stderr where it is apart.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id in the machine.
    pub pid: u32,
    /// What did not go as it should, such as a login shell that failed; for the person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The command ended: by exit code, or by signal.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// Exit code.
    Code(u8),
    /// Signal number.
    Signal(u8),
}

impl Exit {
    /// What a shell would give as the status: the code, or 128 and the signal.
    pub fn status(self) -> u8 {
        match self {
            Exit::Code(c) => c,
            Exit::Signal(s) => 128u8.saturating_add(s),
        }
    }
}

/// Send a signal to the command's process group.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Signal number.
    pub signal: u8,
}

/// Why a command was not started.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What a shell would exit with: 126 not executable, 127 not found, 125 anything else.
    pub code: u8,
    /// For the person.
    pub message: String,
}

/// The JSON payloads by the name of their frame: what the published schema describes. On the wire a payload stands alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub enum Control {
    /// Type 1.
    Hello(Hello),
    /// Type 2.
    Exec(Exec),
    /// Type 3.
    Started(Started),
    /// Type 4.
    Exit(Exit),
    /// Type 5.
    WindowSize(WindowSize),
    /// Type 6.
    Signal(Signal),
    /// Type 7.
    Failure(Failure),
    /// Type 14.
    Delivered(Delivered),
}

/// Bytes of a stream that its receiver has dealt with. Not JSON: the stream's frame type (u8), then the count (u32, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// [`FrameType::Stdin`], [`FrameType::Stdout`] or [`FrameType::Stderr`].
    pub stream: FrameType,
    /// How many.
    pub bytes: u32,
}

impl Credit {
    /// Appends it as a frame.
    pub fn put(self, out: &mut Vec<u8>) {
        let b = self.bytes.to_le_bytes();
        put(out, FrameType::Credit, &[self.stream as u8, b[0], b[1], b[2], b[3]]);
    }

    /// Reads it from a frame's payload.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let malformed = |why: &str| ProtocolError::Malformed { what: "credit", why: why.into() };
        let [stream, a, b, c, d] = payload else { return Err(malformed("not 5 bytes")) };
        let stream = FrameType::try_from(*stream).map_err(ProtocolError::UnknownType)?;
        match stream {
            FrameType::Stdin | FrameType::Stdout | FrameType::Stderr => {
                Ok(Credit { stream, bytes: u32::from_le_bytes([*a, *b, *c, *d]) })
            }
            _ => Err(malformed("not a stream")),
        }
    }
}

/// What came of a delivery.
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Units that were restarted, because a secret of theirs changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarted: Vec<String>,
    /// What did not go as it should; for the person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Values of secrets on their way into a machine. Not JSON, so that no copy of a value has to be made: whether secrets that
/// are not in it stay (u8, 0 or 1), then for each secret its name and its value, each after its length (u32, little endian).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Whether secrets that are not in it stay as they are.
    pub keep_others: bool,
    /// Names and values.
    pub secrets: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Delivery<'a> {
    /// The payload's length.
    pub fn encoded_len(&self) -> usize {
        1 + self.secrets.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>()
    }

    /// Hands the payload out in pieces.
    pub fn encode(&self, put: &mut dyn FnMut(&[u8])) {
        put(&[u8::from(self.keep_others)]);
        for (name, value) in &self.secrets {
            for bytes in [name.as_bytes(), value] {
                put(&(bytes.len() as u32).to_le_bytes());
                put(bytes);
            }
        }
    }

    /// Reads it from a frame's payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let malformed = |why: &str| ProtocolError::Malformed { what: "delivery", why: why.into() };
        let (first, mut rest) = payload.split_first().ok_or(malformed("it is empty"))?;
        let keep_others = match first {
            0 => false,
            1 => true,
            _ => return Err(malformed("its first byte is neither 0 nor 1")),
        };
        let mut next = || -> Result<Option<&'a [u8]>, ProtocolError> {
            if rest.is_empty() {
                return Ok(None);
            }
            let (length, after) = rest.split_first_chunk::<4>().ok_or(malformed("a length is cut off"))?;
            let (bytes, after) = after
                .split_at_checked(u32::from_le_bytes(*length) as usize)
                .ok_or(malformed("a text is cut off"))?;
            rest = after;
            Ok(Some(bytes))
        };
        let mut secrets = Vec::new();
        while let Some(name) = next()? {
            let name = std::str::from_utf8(name).map_err(|_| malformed("a name is not UTF-8"))?;
            if !is_secret_name(name) {
                return Err(malformed("a name is no name of a secret"));
            }
            secrets.push((name, next()?.ok_or(malformed("a value is missing"))?));
        }
        Ok(Delivery { keep_others, secrets })
    }
}

/// Whether a secret can be called so: it names a file in the machine.
pub fn is_secret_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = FrameType> {
        (1u8..=14)
            .prop_map(|n| FrameType::try_from(n).unwrap())
            .prop_filter("parts are joined", |k| *k != FrameType::Part)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            frames in proptest::collection::vec((kinds(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in proptest::collection::vec(1usize..64, 1..200),
        ) {
            let mut wire = Vec::new();
            for (kind, payload) in &frames {
                put(&mut wire, *kind, payload);
            }
            let mut decoder = Decoder::new(MAX_MESSAGE);
            let mut seen = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.push(now);
                while let Some(f) = decoder.next_frame().unwrap() {
                    seen.push((f.kind, f.payload));
                }
                rest = later;
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn secrets_come_through_byte_for_byte(
            keep_others in any::<bool>(),
            secrets in proptest::collection::vec(("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..5),
        ) {
            let sent = Delivery { keep_others, secrets: secrets.iter().map(|(n, v)| (n.as_str(), &v[..])).collect() };
            let mut wire = Vec::new();
            sent.encode(&mut |b| wire.extend_from_slice(b));
            prop_assert_eq!(wire.len(), sent.encoded_len());
            prop_assert_eq!(Delivery::parse(&wire).unwrap(), sent);
            for cut in 0..wire.len() {
                // What is cut off is an error, or a shorter list: never something else.
                if let Ok(got) = Delivery::parse(&wire[..cut]) {
                    prop_assert!(got.secrets.iter().zip(&secrets).all(|(g, s)| g.0 == s.0 && g.1 == s.1));
                }
            }
        }

        #[test]
        fn a_delivery_of_rubbish_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(got) = Delivery::parse(&bytes) {
                prop_assert!(got.secrets.iter().all(|(n, _)| is_secret_name(n)));
            }
        }

        #[test]
        fn rubbish_never_makes_the_decoder_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = Decoder::new(64 << 10);
            decoder.push(&bytes);
            while let Ok(Some(f)) = decoder.next_frame() {
                prop_assert!(f.payload.len() <= bytes.len());
            }
        }

        #[test]
        fn any_argument_list_comes_through_byte_for_byte(
            argv in proptest::collection::vec(proptest::collection::vec(1u8..=255, 0..40), 0..8),
            cwd in proptest::option::of(proptest::collection::vec(1u8..=255, 0..40)),
        ) {
            let sent = Exec { argv: argv.iter().map(|a| a[..].into()).collect(), cwd: cwd.as_deref().map(Into::into), ..Exec::default() };
            let mut wire = Vec::new();
            put_json(&mut wire, FrameType::Exec, "exec", &sent).unwrap();
            let mut decoder = Decoder::new(MAX_MESSAGE);
            decoder.push(&wire);
            let got: Exec = decoder.next_frame().unwrap().unwrap().json("exec").unwrap();
            let bytes: Vec<_> = got.argv.iter().map(|a| a.as_bytes().to_vec()).collect();
            prop_assert_eq!(bytes, argv);
            prop_assert_eq!(got.cwd.map(|c| c.as_bytes().to_vec()), cwd);
        }
    }

    #[test]
    fn a_message_above_one_frame_travels_in_parts_and_is_joined() {
        let payload: Vec<u8> = (0..3 * MAX_PAYLOAD + 7).map(|i| (i % 251) as u8).collect();
        let mut wire = Vec::new();
        put(&mut wire, FrameType::Exec, &payload);
        let mut decoder = Decoder::new(MAX_MESSAGE);
        decoder.push(&wire);
        assert_eq!(decoder.next_frame().unwrap(), Some(Frame { kind: FrameType::Exec, payload }));
        assert_eq!(decoder.next_frame().unwrap(), None);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_its_bytes_arrive() {
        let mut decoder = Decoder::new(MAX_MESSAGE);
        decoder.push(&((MAX_PAYLOAD + 1) as u32).to_le_bytes());
        decoder.push(&[FrameType::Exec as u8]);
        assert_eq!(decoder.next_frame(), Err(ProtocolError::TooLong(MAX_PAYLOAD + 1)));
    }

    #[test]
    fn parts_do_not_add_up_beyond_the_readers_limit() {
        let mut wire = Vec::new();
        put(&mut wire, FrameType::Part, &[0; 600]);
        put(&mut wire, FrameType::Exec, &[0; 600]);
        let mut decoder = Decoder::new(1000);
        decoder.push(&wire);
        assert_eq!(decoder.next_frame(), Err(ProtocolError::TooLong(1200)));
    }

    #[test]
    fn an_unknown_type_is_refused() {
        let mut decoder = Decoder::new(MAX_MESSAGE);
        decoder.push(&[0, 0, 0, 0, 99]);
        assert_eq!(decoder.next_frame(), Err(ProtocolError::UnknownType(99)));
    }

    #[test]
    fn credit_is_a_stream_and_a_count() {
        let sent = Credit { stream: FrameType::Stderr, bytes: 70_000 };
        let mut wire = Vec::new();
        sent.put(&mut wire);
        assert_eq!(Credit::parse(&wire[HEADER..]), Ok(sent));
        assert!(Credit::parse(&[FrameType::Exit as u8, 0, 0, 0, 0]).is_err());
        assert!(Credit::parse(&[]).is_err());
    }

    #[test]
    fn the_control_messages_look_as_documented() {
        let json = |v: serde_json::Value| v.to_string();
        assert_eq!(serde_json::to_string(&Hello { proto: 1, streams: false }).unwrap(), r#"{"proto":1}"#);
        assert_eq!(serde_json::to_string(&Exit::Code(3)).unwrap(), r#"{"code":3}"#);
        assert_eq!(serde_json::to_string(&Exit::Signal(9)).unwrap(), r#"{"signal":9}"#);
        let exec = Exec {
            argv: vec![b"a"[..].into(), b"\xff"[..].into()],
            tty: Some(WindowSize { cols: 80, rows: 24 }),
            ..Exec::default()
        };
        assert_eq!(
            serde_json::to_value(&exec).map(json).unwrap(),
            r#"{"argv":["a",[255]],"tty":{"cols":80,"rows":24}}"#
        );
    }

    #[test]
    fn a_signal_is_128_and_its_number_as_a_shell_has_it() {
        assert_eq!(Exit::Signal(15).status(), 143);
        assert_eq!(Exit::Signal(255).status(), 255);
        assert_eq!(Exit::Code(255).status(), 255);
    }
}
