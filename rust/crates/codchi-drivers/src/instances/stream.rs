//! What the engine leads on by websockets: the streams of programs in an instance, which is how one on another host is reached, and
//! what it tells of instances.
//!
//! <https://linuxcontainers.org/incus/docs/main/rest-api/>, `exec`: each stream is a websocket; a text message ends it.

use std::io::{Read, Write};

use serde_json::json;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Bytes, HandshakeError, Message, WebSocket};

use super::api::{Api, ApiError};
use super::site::Wire;

/// Bytes of one message.
const CHUNK: usize = 64 << 10;
/// Bytes of what a program says of its failure.
const SAID: usize = 16 << 10;

/// How often a program is started whose streams the engine does not lead to it.
const TRIES: u32 = 3;
/// How long the engine may take to lead a stream.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
/// How long to wait until the next time.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// A program that runs in an instance.
pub struct Program<'a> {
    api: &'a Api,
    operation: String,
    input: WebSocket<Wire>,
    output: WebSocket<Wire>,
    errors: WebSocket<Wire>,
    /// The engine ends the program when this is closed.
    _control: WebSocket<Wire>,
}

impl<'a> Program<'a> {
    /// Starts it, as the instance's root.
    pub fn start(api: &'a Api, instance: &str, command: &[&str]) -> Result<Program<'a>, ApiError> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            match Program::try_start(api, instance, command) {
                // Seen once where a member of a cluster leads to another: nothing runs before all streams are there.
                Err(ApiError::Refused { code: 500.., .. }) if tries > 0 => {}
                done => return done,
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn try_start(api: &'a Api, instance: &str, command: &[&str]) -> Result<Program<'a>, ApiError> {
        let path = format!("/1.0/instances/{instance}/exec");
        let body = json!({
            "command": command,
            "wait-for-websocket": true,
            "interactive": false,
            "environment": { "PATH": "/run/current-system/sw/bin" },
            "cwd": "/",
        });
        let (operation, about) = api.begin("POST", &path, &body)?;
        let join = |name: &str| {
            let secret = about["fds"][name].as_str().unwrap_or_default();
            socket(api, &operation, secret)
        };
        // In this order: it begins when all are there.
        let (input, output, errors, control) = (join("0")?, join("1")?, join("2")?, join("control")?);
        Ok(Program { api, operation, input, output, errors, _control: control })
    }

    /// Serves its streams until it ends; answers its exit status and what it said of its failure. `ended` is called when nothing
    /// more comes of it, and ends what `from` still waits for.
    pub fn run(
        self,
        from: &mut (dyn Read + Send),
        to: &mut dyn Write,
        ended: &dyn Fn(),
    ) -> Result<(i64, String), ApiError> {
        let Program { api, operation, mut input, mut output, mut errors, _control } = self;
        let broken = |reason: String| ApiError::Broken { request: operation.clone(), reason };
        let (sent, received, said) = std::thread::scope(|s| {
            let sending = s.spawn(move || {
                let sent = feed(&mut input, from);
                // It stays open: the engine takes its end for that of the program's input only when it is told.
                (sent, input)
            });
            let saying = s.spawn(move || {
                let mut said = Vec::new();
                let _ = drain(&mut errors, &mut |bytes: &[u8]| {
                    let room = SAID.saturating_sub(said.len());
                    said.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
                    Ok(())
                });
                String::from_utf8_lossy(&said).into_owned()
            });
            let received = drain(&mut output, &mut |bytes: &[u8]| to.write_all(bytes));
            ended();
            let sent = sending.join();
            (sent, received, saying.join().unwrap_or_default())
        });
        received.map_err(broken)?;
        let done = api.outcome(&operation)?;
        let status = done["return"].as_i64().ok_or_else(|| broken("there is no exit status".into()))?;
        if status == 0 {
            // Of one that ended well without all that was sent, nothing is known.
            sent.map_err(|_| broken("a thread ended".into()))?.0.map_err(broken)?;
        }
        Ok((status, said.trim().into()))
    }
}

/// Runs a program to its end.
pub fn run(
    api: &Api,
    instance: &str,
    command: &[&str],
    from: &mut (dyn Read + Send),
    to: &mut dyn Write,
) -> Result<(), ApiError> {
    match Program::start(api, instance, command)?.run(from, to, &|| {})? {
        (0, _) => Ok(()),
        (status, said) => Err(ApiError::Refused {
            code: 500,
            message: if said.is_empty() { format!("it ended with status {status}") } else { said },
        }),
    }
}

/// Hears what becomes of instances, until nobody tells any more.
pub fn hear(api: &Api, tell: &dyn Fn()) -> Result<(), ApiError> {
    let path = "/1.0/events?type=lifecycle";
    let mut events = open(api, path)?;
    loop {
        match events.read() {
            Ok(Message::Text(_) | Message::Binary(_)) => tell(),
            Ok(_) => {}
            Err(e) => return Err(ApiError::Broken { request: format!("GET {path}"), reason: e.to_string() }),
        }
    }
}

fn socket(api: &Api, operation: &str, secret: &str) -> Result<WebSocket<Wire>, ApiError> {
    open(api, &format!("{operation}/websocket?secret={secret}"))
}

fn open(api: &Api, path: &str) -> Result<WebSocket<Wire>, ApiError> {
    let shown = path.split('?').next().unwrap_or_default();
    let broken = |reason: String| ApiError::Broken { request: format!("GET {shown}"), reason };
    let path = api.site().asked(path);
    let wire = api.site().connect().map_err(|e| broken(e.to_string()))?;
    let request = format!("ws://engine{path}").into_client_request().map_err(|e| broken(e.to_string()))?;
    wire.set_read_timeout(Some(PATIENCE)).map_err(|e| broken(e.to_string()))?;
    match tungstenite::client(request, wire) {
        Ok((socket, _)) => {
            socket.get_ref().set_read_timeout(None).map_err(|e| broken(e.to_string()))?;
            Ok(socket)
        }
        Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            let text = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            Err(super::api::refusal(answer.status().as_u16(), &text))
        }
        Err(e) => Err(broken(e.to_string())),
    }
}

fn feed(to: &mut WebSocket<Wire>, from: &mut dyn Read) -> Result<(), String> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.to_string()),
        };
        let message = match buffer.get(..n) {
            Some(bytes) if n > 0 => Message::Binary(Bytes::copy_from_slice(bytes)),
            _ => Message::Text("".into()),
        };
        to.send(message).map_err(|e| e.to_string())?;
        if n == 0 {
            return Ok(());
        }
    }
}

fn drain(from: &mut WebSocket<Wire>, to: &mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), String> {
    loop {
        match from.read() {
            Ok(Message::Binary(bytes)) => to(&bytes).map_err(|e| e.to_string())?,
            Ok(Message::Text(_) | Message::Close(_)) => return Ok(()),
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        }
    }
}
