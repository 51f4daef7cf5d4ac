//! Where an engine answers: on its socket, or on another host that its own client knows as a remote.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};
use serde::Deserialize;

use super::dialect::Dialect;
use crate::{DriverError, Result};

/// Longest wait for a connection to another host.
const CONNECT: Duration = Duration::from_secs(5);
/// Where the engine listens when the address names no port.
const PORT: u16 = 8443;

/// One engine.
#[derive(Clone, Debug)]
pub enum Site {
    /// On this host.
    Socket(PathBuf),
    /// On another one.
    Remote(Arc<Remote>),
}

/// An engine on another host.
pub struct Remote {
    /// What the engine's client calls it.
    name: String,
    host: String,
    port: u16,
    project: Option<String>,
    tls: Arc<ClientConfig>,
}

/// What the engine's client remembers.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    remotes: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    addr: String,
    #[serde(default)]
    auth_type: String,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    project: String,
    #[serde(default)]
    public: bool,
}

impl Site {
    /// The engine that its client, which keeps what it knows in `dir`, calls `name`; `local` is the one of this host.
    pub fn named(dialect: &Dialect, dir: &Path, name: &str) -> Result<Site> {
        let file = dir.join("config.yml");
        let told = |what: String, hint: String| DriverError::Host { what, hints: vec![hint] };
        let client = dialect.client;
        let text = codchi_fs::read_if_exists(&file)?.unwrap_or_default();
        let config: Config = match text.trim().is_empty() {
            true => Config { remotes: BTreeMap::new() },
            false => serde_norway::from_str(&text).map_err(|e| DriverError::Helper {
                what: format!("read `{}`", file.display()),
                reason: e.to_string(),
            })?,
        };
        let Some(entry) = config.remotes.get(name) else {
            if name == "local" {
                return Ok(Site::Socket(dialect.socket()));
            }
            return Err(told(
                format!("{} knows no remote `{name}`", dialect.title),
                format!(
                    "`{client} remote add {name} ADDRESS` makes it known; `{client} remote list` shows those there are"
                ),
            ));
        };
        if let Some(path) = entry.addr.strip_prefix("unix:") {
            let path = path.trim_start_matches('/');
            return Ok(Site::Socket(match path {
                "" => dialect.socket(),
                path => Path::new("/").join(path),
            }));
        }
        let Some((host, port)) = entry.addr.strip_prefix("https://").and_then(host_and_port) else {
            return Err(told(
                format!(
                    "the remote `{name}` of {} is at `{}`, which is no https address",
                    dialect.title, entry.addr
                ),
                format!("`{client} remote set-url {name} https://HOST:{PORT}` changes it"),
            ));
        };
        if entry.public || !(entry.protocol.is_empty() || entry.protocol == dialect.info.name) {
            return Err(told(
                format!("the remote `{name}` of {} has images only", dialect.title),
                format!("`{client} remote list` shows those that run instances"),
            ));
        }
        if !matches!(entry.auth_type.as_str(), "" | "tls") {
            return Err(told(
                format!(
                    "the remote `{name}` of {} is used with `{}`, and Codchi can use a certificate only",
                    dialect.title, entry.auth_type
                ),
                format!("`{client} remote add {name} ADDRESS --auth-type tls` makes it known with one"),
            ));
        }
        let tls = tls(dir, name).map_err(|e| match e {
            Unusable::NoCertificate(file) => told(
                format!(
                    "`{}` is missing, by which {} on another host knows you",
                    file.display(),
                    dialect.title
                ),
                format!("`{client} remote add {name} {}` makes it", entry.addr),
            ),
            Unusable::Other(reason) => {
                DriverError::Helper { what: format!("use the certificates in `{}`", dir.display()), reason }
            }
        })?;
        let project = Some(entry.project.clone()).filter(|p| !matches!(p.as_str(), "" | "default"));
        Ok(Site::Remote(Arc::new(Remote { name: name.into(), host, port, project, tls: Arc::new(tls) })))
    }

    /// Its socket on this host.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Site::Socket(path) => Some(path),
            Site::Remote(_) => None,
        }
    }

    /// A connection.
    pub fn connect(&self) -> io::Result<Wire> {
        match self {
            Site::Socket(path) => Ok(Wire::Unix(UnixStream::connect(path)?)),
            Site::Remote(remote) => remote.connect(),
        }
    }

    /// A path as it is asked for there.
    pub fn asked(&self, path: &str) -> String {
        match self {
            Site::Remote(remote) if remote.project.is_some() => {
                let project = remote.project.as_deref().unwrap_or_default();
                format!("{path}{}project={project}", if path.contains('?') { '&' } else { '?' })
            }
            _ => path.into(),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Socket(path) => write!(f, "`{}`", path.display()),
            Site::Remote(r) => write!(f, "the remote `{}` at {}:{}", r.name, r.host, r.port),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.name, self.host, self.port)
    }
}

/// `host`, `host:port`, `[::1]:port`, with anything after them left out.
fn host_and_port(address: &str) -> Option<(String, u16)> {
    let address = address.split('/').next()?;
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, rest)| (host, rest.strip_prefix(':')))?,
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = port.map_or(Some(PORT), |p| p.parse().ok())?;
    (!host.is_empty()).then(|| (host.into(), port))
}

enum Unusable {
    NoCertificate(PathBuf),
    Other(String),
}

/// With the caller's own certificate; the server's is the one that was accepted when the remote was made known, or one that
/// an authority of the host's signed.
fn tls(dir: &Path, name: &str) -> Result<ClientConfig, Unusable> {
    let other = |e: &dyn fmt::Display| Unusable::Other(e.to_string());
    let (cert, key) = (dir.join("client.crt"), dir.join("client.key"));
    if let Some(missing) = [&cert, &key].into_iter().find(|f| !f.exists()) {
        return Err(Unusable::NoCertificate(missing.clone()));
    }
    let read = |file: &Path| -> Result<Vec<CertificateDer<'static>>, Unusable> {
        CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|e| Unusable::Other(format!("`{}`: {e}", file.display())))
    };
    let chain = read(&cert)?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| other(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| other(&e))?;
    let accepted = dir.join("servercerts").join(format!("{name}.crt"));
    let config = if accepted.exists() {
        let accepted =
            read(&accepted)?.into_iter().next().ok_or_else(|| other(&"no certificate is in it"))?;
        config.dangerous().with_custom_certificate_verifier(Arc::new(Accepted { accepted, provider }))
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        config.with_root_certificates(roots)
    };
    config.with_client_auth_cert(chain, key).map_err(|e| other(&e))
}

/// Takes one certificate and no other, whatever name it has.
#[derive(Debug)]
struct Accepted {
    accepted: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Accepted {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *shown == self.accepted {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Remote {
    fn connect(&self) -> io::Result<Wire> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        for address in found.map_err(|e| io::Error::new(io::ErrorKind::NotFound, e))? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => return self.secured(stream),
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    last = io::Error::new(io::ErrorKind::HostUnreachable, "no answer");
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn secured(&self, stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        // A host that is gone is found out in about a minute.
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(20))?;
        rustix::net::sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(10))?;
        rustix::net::sockopt::set_tcp_keepcnt(&stream, 4)?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, 60_000)?;
        stream.set_read_timeout(Some(CONNECT))?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        // Here, so that who answers with another certificate is no answer that is not understood.
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|e| {
                let why = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                let kind = match why {
                    Some(rustls::Error::InvalidCertificate(_)) => io::ErrorKind::NotConnected,
                    _ => io::ErrorKind::HostUnreachable,
                };
                io::Error::new(kind, e.to_string())
            })?;
        }
        stream.sock.set_read_timeout(None)?;
        Ok(Wire::Tls(Box::new(stream)))
    }
}

/// A connection to an engine.
#[derive(Debug)]
pub enum Wire {
    /// On this host.
    Unix(UnixStream),
    /// To another one.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Longest wait for something to read.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Wire::Unix(s) => s.set_read_timeout(time),
            Wire::Tls(s) => s.sock.set_read_timeout(time),
        }
    }

    /// Longest wait until something is written.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Wire::Unix(s) => s.set_write_timeout(time),
            Wire::Tls(s) => s.sock.set_write_timeout(time),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Wire::Unix(s) => s.as_fd(),
            Wire::Tls(s) => s.sock.as_fd(),
        }
    }

    /// Whether it is open and nothing has come. One that the engine has closed reads as its end; anything else unasked for is no use either.
    pub fn is_quiet(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        matches!(
            rustix::net::recv(self.descriptor(), &mut [0u8; 1][..], flags),
            Err(rustix::io::Errno::AGAIN)
        )
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Unix(s) => s.read(buffer),
            // Who ends without a farewell has ended.
            Wire::Tls(s) => match s.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                done => done,
            },
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Unix(s) => s.write(bytes),
            Wire::Tls(s) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Unix(s) => s.flush(),
            Wire::Tls(s) => s.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_client_writes_them() {
        let read = |a| host_and_port(a);
        assert_eq!(read("10.0.0.1:8443"), Some(("10.0.0.1".into(), 8443)));
        assert_eq!(read("host.example.org"), Some(("host.example.org".into(), PORT)));
        assert_eq!(read("[fd00::1]:9"), Some(("fd00::1".into(), 9)));
        assert_eq!(read("[fd00::1]"), Some(("fd00::1".into(), PORT)));
        assert_eq!(read("host:port"), None);
        assert_eq!(read(""), None);
    }
}
