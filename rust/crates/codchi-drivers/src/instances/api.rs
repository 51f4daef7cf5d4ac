//! The engine's REST API.
//!
//! <https://linuxcontainers.org/incus/docs/main/rest-api/>: an answer is `sync` with its result, `async` with an operation to wait
//! for, or `error`.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::config::Config;
use ureq::http::{Request, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use codchi_core::remote::Remote;

use super::dialect::Dialect;
use super::site::{Site, Wire};

/// How long an answer may take; operations are waited for in pieces of this.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the engine may take for what it was asked, such as a copy of all files.
const OPERATION: Duration = Duration::from_secs(3600);
/// How long an instance may take to start, stop, freeze or go on.
const TRANSITION: Duration = Duration::from_secs(100);

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers there; [`super::probe::unreachable`] says what that means.
    #[error("{site}: {source}")]
    Connect {
        /// Where.
        site: Box<Site>,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is no answer.
    #[error("the engine's answer to `{request}` is not understood: {reason}")]
    Broken {
        /// What was asked.
        request: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// It answered that it did not do it.
    #[error("{message}")]
    Refused {
        /// An HTTP status.
        code: u16,
        /// In the engine's words.
        message: String,
    },
}

impl ApiError {
    /// Whether what was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ApiError::Refused { code: 404, .. })
    }

    /// Whether nobody answers.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ApiError::Connect { .. })
    }
}

/// A client.
#[derive(Debug)]
pub struct Api {
    agent: ureq::Agent,
    site: Site,
    apart: Option<Remote>,
    dialect: &'static Dialect,
}

impl Api {
    /// Of the engine that answers there; nothing is connected yet.
    pub fn at(dialect: &'static Dialect, site: &Site) -> Api {
        let config = Config::builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE + Duration::from_secs(5)))
            .build();
        let agent = ureq::Agent::with_parts(config, Engine(site.clone()), NoResolver);
        Api { agent, site: site.clone(), apart: None, dialect }
    }

    /// The same for instances that have nothing of this host, because they are, or may be, on another.
    pub fn apart(self, remote: Remote) -> Api {
        Api { apart: Some(remote), ..self }
    }

    /// Where its instances are, when they have nothing of this host.
    pub fn remote(&self) -> Option<&Remote> {
        self.apart.as_ref()
    }

    /// An instance as the engine's client names it.
    pub fn called(&self, instance: impl std::fmt::Display) -> String {
        match &self.apart {
            None => instance.to_string(),
            Some(remote) => format!("{}:{instance}", remote.name),
        }
    }

    /// What the engine calls things.
    pub fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    /// Where it answers.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Asks, and gives the result.
    pub fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.answer("GET", path, None)
    }

    /// Asks for a text, such as a log.
    pub fn text(&self, path: &str) -> Result<String, ApiError> {
        let (status, text) = self.call("GET", path, None, &[])?;
        if status == 200 {
            return Ok(text);
        }
        Err(refusal(status, &text))
    }

    /// Has something made or changed, and waits until that is done.
    pub fn change(&self, method: &str, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.answer(method, path, Some(body))
    }

    /// Gives the engine a file, and waits until it has done what it does with it.
    pub fn upload(&self, path: &str, file: &[u8]) -> Result<Value, ApiError> {
        let headers = [("Content-Type", "application/octet-stream")];
        let (_, text) = self.call("POST", path, Some(file), &headers)?;
        self.result("POST", path, parsed("POST", path, &text)?)
    }

    /// Has something removed, and waits until it is.
    pub fn delete(&self, path: &str) -> Result<(), ApiError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.answer("DELETE", path, None) {
                // The engine's words for: the end of what it did before is still to come, such as that of a stop.
                Err(ApiError::Refused { message, .. })
                    if message.contains("busy running") && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                done => return done.map(drop),
            }
        }
    }

    /// Has an instance `start`, `stop`, `freeze` or `unfreeze`, and waits until it has. `force`: it is not asked, but killed.
    pub fn set_state(&self, instance: &str, action: &str, force: bool) -> Result<(), ApiError> {
        let (path, body) = transition(instance, action, force);
        self.change("PUT", &path, &body).map(drop)
    }

    /// The same without waiting for it.
    pub fn begin_state(&self, instance: &str, action: &str, force: bool) -> Result<(), ApiError> {
        let (path, body) = transition(instance, action, force);
        self.call_json("PUT", &path, Some(&body)).map(drop)
    }

    /// Makes a folder in an instance.
    pub fn make_folder(&self, instance: &str, path: &str) -> Result<(), ApiError> {
        let headers = [
            ("X-Incus-type", "directory"),
            ("X-Incus-mode", "0755"),
            ("X-LXD-type", "directory"),
            ("X-LXD-mode", "0755"),
        ];
        let (status, text) =
            self.call("POST", &format!("/1.0/instances/{instance}/files?path={path}"), Some(b""), &headers)?;
        if status == 200 { Ok(()) } else { Err(refusal(status, &text)) }
    }

    /// Puts a program into an instance.
    pub fn put_program(&self, instance: &str, path: &str, program: &[u8]) -> Result<(), ApiError> {
        let headers = [
            ("Content-Type", "application/octet-stream"),
            ("X-Incus-type", "file"),
            ("X-Incus-mode", "0755"),
            ("X-LXD-type", "file"),
            ("X-LXD-mode", "0755"),
        ];
        let (status, text) = self.call(
            "POST",
            &format!("/1.0/instances/{instance}/files?path={path}"),
            Some(program),
            &headers,
        )?;
        if status == 200 { Ok(()) } else { Err(refusal(status, &text)) }
    }

    /// The names in a folder of an instance; none where there is no such folder.
    pub fn folder(&self, instance: &str, path: &str) -> Vec<String> {
        let names = self.get(&format!("/1.0/instances/{instance}/files?path={path}")).unwrap_or_default();
        names.as_array().into_iter().flatten().filter_map(|n| n.as_str().map(String::from)).collect()
    }

    /// Removes a file of an instance.
    pub fn remove_file(&self, instance: &str, path: &str) -> Result<(), ApiError> {
        self.delete(&format!("/1.0/instances/{instance}/files?path={path}"))
    }

    fn answer(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let answer = self.call_json(method, path, body)?;
        self.result(method, path, answer)
    }

    /// Has something begun that the engine says more of: its operation, and what is said.
    pub fn begin(&self, method: &str, path: &str, body: &Value) -> Result<(String, Value), ApiError> {
        let answer = self.call_json(method, path, Some(body))?;
        Ok((operation(method, path, &answer)?, answer["metadata"]["metadata"].clone()))
    }

    /// What came of what was asked, which may take the engine a while.
    fn result(&self, method: &str, path: &str, answer: Value) -> Result<Value, ApiError> {
        if answer["type"] != "async" {
            return Ok(answer["metadata"].clone());
        }
        self.outcome(&operation(method, path, &answer)?)
    }

    /// Waits for an operation.
    pub fn outcome(&self, operation: &str) -> Result<Value, ApiError> {
        let broken =
            |reason: &str| ApiError::Broken { request: format!("GET {operation}"), reason: reason.into() };
        let wait = format!("{operation}/wait?timeout={}", PATIENCE.as_secs());
        let until = Instant::now() + OPERATION;
        while Instant::now() < until {
            let done = match self.call_json("GET", &wait, None) {
                Ok(done) => done,
                // The engine's words for: it is still at it.
                Err(ApiError::Refused { message, .. }) if message.contains("deadline exceeded") => continue,
                Err(e) => return Err(e),
            };
            let done = &done["metadata"];
            match done["status_code"].as_u64() {
                Some(200) => return Ok(done["metadata"].clone()),
                Some(code) if code >= 400 => {
                    let message = done["err"].as_str().unwrap_or("no reason is given").to_string();
                    return Err(ApiError::Refused { code: u16::try_from(code).unwrap_or(400), message });
                }
                Some(_) => {}
                None => return Err(broken("the operation has no state")),
            }
        }
        Err(broken("it is not done after an hour"))
    }

    fn call_json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let bytes = body.map(|b| b.to_string().into_bytes());
        let json = [("Content-Type", "application/json")];
        let headers = if bytes.is_some() { &json[..] } else { &[] };
        let (_, text) = self.call(method, path, bytes.as_deref(), headers)?;
        parsed(method, path, &text)
    }

    fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> Result<(u16, String), ApiError> {
        let broken = |reason: String| ApiError::Broken { request: format!("{method} {path}"), reason };
        let mut request =
            Request::builder().method(method).uri(format!("http://engine{}", self.site.asked(path)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = match body {
            Some(body) => request.body(body).map_err(|e| broken(e.to_string())).map(|r| self.agent.run(r))?,
            None => request.body(()).map_err(|e| broken(e.to_string())).map(|r| self.agent.run(r))?,
        };
        let mut answer = sent.map_err(|e| match e {
            ureq::Error::Io(source) if is_about_connecting(&source) => {
                ApiError::Connect { site: Box::new(self.site.clone()), source }
            }
            other => broken(other.to_string()),
        })?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(64 << 20).lossy_utf8(true).read_to_string();
        Ok((status, text.map_err(|e| broken(e.to_string()))?))
    }
}

fn operation(method: &str, path: &str, answer: &Value) -> Result<String, ApiError> {
    let broken =
        || ApiError::Broken { request: format!("{method} {path}"), reason: "no operation is named".into() };
    // What a project is named for is asked with each request.
    let path = answer["operation"].as_str().and_then(|o| o.split('?').next());
    path.map(String::from).ok_or_else(broken)
}

fn parsed(method: &str, path: &str, text: &str) -> Result<Value, ApiError> {
    let answer: Value = serde_json::from_str(text)
        .map_err(|e| ApiError::Broken { request: format!("{method} {path}"), reason: e.to_string() })?;
    if answer["type"] == "error" {
        return Err(refused(&answer));
    }
    Ok(answer)
}

fn transition(instance: &str, action: &str, force: bool) -> (String, Value) {
    let body = json!({ "action": action, "timeout": TRANSITION.as_secs(), "force": force });
    (format!("/1.0/instances/{instance}/state"), body)
}

fn is_about_connecting(e: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, NotConnected, NotFound, PermissionDenied,
    };
    matches!(
        e.kind(),
        NotFound | PermissionDenied | ConnectionRefused | NotConnected | HostUnreachable | NetworkUnreachable
    )
}

fn refused(answer: &Value) -> ApiError {
    ApiError::Refused {
        code: answer["error_code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500),
        message: answer["error"].as_str().unwrap_or("no reason is given").into(),
    }
}

/// What an answer says that is none of what was asked for.
pub fn refusal(status: u16, text: &str) -> ApiError {
    match serde_json::from_str::<Value>(text) {
        Ok(answer) if answer["type"] == "error" => refused(&answer),
        _ => ApiError::Refused { code: status, message: format!("the engine answers with status {status}") },
    }
}

/// Connects to the engine, whatever the address.
#[derive(Debug)]
struct Engine(Site);

impl Connector for Engine {
    type Out = Stream;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<Stream>, ureq::Error> {
        let wire = self.0.connect()?;
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Stream { wire, buffers }))
    }
}

#[derive(Debug)]
struct Stream {
    wire: Wire,
    buffers: LazyBuffers,
}

impl Stream {
    fn said(e: io::Error, timeout: NextTimeout) -> ureq::Error {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
            _ => ureq::Error::Io(e),
        }
    }
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.wire.set_write_timeout(timeout.not_zero().map(|t| *t))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.wire.write_all(output).and_then(|()| self.wire.flush()).map_err(|e| Stream::said(e, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.wire.set_read_timeout(timeout.not_zero().map(|t| *t))?;
        let amount = loop {
            match self.wire.read(self.buffers.input_append_buf()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|e| Stream::said(e, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.wire.is_quiet()
    }
}

/// Where the engine is does not depend on the address: there is nothing to look up.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut none = self.empty();
        none.push(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        Ok(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incus::DIALECT as INCUS;
    use std::path::PathBuf;

    /// A server that answers each connection with the next of `answers`, and gives what it was sent.
    fn serve(
        answers: Vec<&'static str>,
    ) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 8192];
                let n = stream.read(&mut bytes).unwrap();
                heard.push(String::from_utf8_lossy(&bytes[..n]).lines().next().unwrap_or_default().into());
                let length = answer.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{answer}"
                )
                .unwrap();
            }
            heard
        });
        (dir, socket, thread)
    }

    #[test]
    fn an_operation_is_waited_for_and_its_failure_told() {
        let (_dir, socket, thread) = serve(vec![
            r#"{"type":"async","operation":"/1.0/operations/x"}"#,
            r#"{"type":"sync","metadata":{"status_code":103}}"#,
            r#"{"type":"error","error_code":500,"error":"context deadline exceeded"}"#,
            r#"{"type":"sync","metadata":{"status_code":400,"err":"no space left"}}"#,
        ]);
        let e = Api::at(&INCUS, &Site::Socket(socket.clone())).delete("/1.0/instances/a").unwrap_err();
        assert_eq!(e.to_string(), "no space left");
        let heard = thread.join().unwrap();
        assert_eq!(heard[0], "DELETE /1.0/instances/a HTTP/1.1");
        assert!(heard[2].starts_with("GET /1.0/operations/x/wait?timeout="), "{heard:?}");
    }

    #[test]
    fn what_is_busy_is_removed_when_it_is_free() {
        let (_dir, socket, thread) = serve(vec![
            r#"{"type":"error","error_code":500,"error":"Failed to create instance delete operation: Instance is busy running a \"stop\" operation"}"#,
            r#"{"type":"sync","metadata":{}}"#,
        ]);
        Api::at(&INCUS, &Site::Socket(socket)).delete("/1.0/instances/a").unwrap();
        assert_eq!(thread.join().unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_there_and_who_does_not_answer_are_told_apart() {
        let (dir, socket, thread) = serve(vec![r#"{"type":"error","error_code":404,"error":"Not Found"}"#]);
        assert!(Api::at(&INCUS, &Site::Socket(socket.clone())).get("/1.0/x").unwrap_err().is_not_found());
        thread.join().unwrap();
        // The listener is gone, its file is left.
        assert!(Api::at(&INCUS, &Site::Socket(socket.clone())).get("/1.0/x").unwrap_err().is_unreachable());
        assert!(
            Api::at(&INCUS, &Site::Socket(dir.path().join("none")))
                .get("/1.0/x")
                .unwrap_err()
                .is_unreachable()
        );
    }
}
