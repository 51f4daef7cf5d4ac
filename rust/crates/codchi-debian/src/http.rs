//! HTTP, with the host's certificates and proxy, time limits and retries.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::config::Config;
use ureq::http::header;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::error::{Error, Result};
use crate::mirror::{Address, basic};

/// What servers are told about who asks.
const AGENT: &str = concat!("codchi/", env!("CARGO_PKG_VERSION"));
/// How often a download is begun before it counts as failed.
const TRIES: u32 = 4;
/// Longest wait for a connection, and for the first byte of an answer.
const CONNECT: Duration = Duration::from_secs(15);
/// How long to go on with a server that does not answer at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of an answer.
const STALL: Duration = Duration::from_secs(30);

/// Asks mirrors. Cheap to make: certificates are read when the first encrypted connection is.
pub struct Client {
    proxies: [Option<ureq::Proxy>; 2],
    agents: [OnceLock<Agent>; 2],
    tries: u32,
    first_pause: Duration,
    stall: Duration,
}

/// What a server answered.
pub struct Answer {
    /// The body.
    pub body: Box<dyn Read + Send>,
    /// Its length, where the server said.
    pub length: Option<u64>,
}

impl Client {
    /// A client with the proxy of the setting, else of the environment (`https_proxy`, `http_proxy`, `all_proxy`,
    /// `no_proxy`), else of apt's configuration.
    pub(crate) fn new(setting: Option<&str>, apt: &BTreeMap<String, String>) -> Result<Client> {
        let proxy = |scheme: &str| -> Result<Option<ureq::Proxy>> {
            let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
            let own = format!("{scheme}_proxy");
            // An upper-case HTTP_PROXY can be set by whoever sends a request to a CGI program, so it does not count.
            let loud = (scheme == "https").then(|| own.to_uppercase());
            let from_env = var(&own)
                .or_else(|| loud.and_then(|n| var(&n)))
                .or_else(|| var("all_proxy"))
                .or_else(|| var("ALL_PROXY"));
            let from_apt = || apt.get(&format!("acquire::{scheme}::proxy")).cloned();
            let text = match setting {
                Some(s) => s.to_owned(),
                None => match from_env.or_else(from_apt) {
                    Some(t) if t != "DIRECT" && t != "false" => t,
                    _ => return Ok(None),
                },
            };
            let bad = || Error::BadAddress { setting: "the proxy" };
            let plain = ureq::Proxy::new(&text).map_err(|_| bad())?;
            let mut builder = ureq::Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
            if let Some(user) = plain.username() {
                builder = builder.username(user);
            }
            if let Some(password) = plain.password() {
                builder = builder.password(password);
            }
            for host in var("no_proxy").or_else(|| var("NO_PROXY")).iter().flat_map(|v| v.split(',')) {
                builder = builder.no_proxy(host.trim());
            }
            Ok(Some(builder.build().map_err(|_| bad())?))
        };
        Ok(Client {
            proxies: [proxy("http")?, proxy("https")?],
            agents: Default::default(),
            tries: TRIES,
            first_pause: Duration::from_millis(400),
            stall: STALL,
        })
    }

    /// Shorter limits, for tests.
    #[cfg(test)]
    pub(crate) fn hurry(&mut self) {
        self.first_pause = Duration::from_millis(1);
        self.stall = Duration::from_millis(300);
    }

    fn agent(&self, url: &str) -> &Agent {
        let secure = url.starts_with("https:");
        let slot = usize::from(secure);
        self.agents[slot].get_or_init(|| {
            let config = Config::builder()
                .http_status_as_error(false)
                .proxy(self.proxies[slot].clone())
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(STALL))
                .timeout_per_read(Some(self.stall))
                // Followed by `get`: reading certificates is left to addresses that need them.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_idle_connections_per_host(16)
                .user_agent(AGENT);
            let config = if secure { config.tls_config(tls()) } else { config };
            Agent::with_parts(config.build(), DefaultConnector::default(), Names::default())
        })
    }

    /// Whether the server answers with success within a time.
    pub(crate) fn answers(&self, address: &Address, within: Duration) -> bool {
        let request = self.agent(address.url()).get(address.url());
        let response = request.config().timeout_global(Some(within)).build().call();
        response.is_ok_and(|r| r.status().is_success() || r.status().is_redirection())
    }

    /// Begins one download, without retries.
    fn begin(&self, address: &Address) -> Result<Answer, Trouble> {
        if let Some(proxy) = self.plain_proxy(address.url()) {
            return self.forward(proxy, address);
        }
        let mut request = self.agent(address.url()).get(address.url());
        if let Some(login) = address.authorization() {
            request = request.header(header::AUTHORIZATION, login);
        }
        let response = request.call().map_err(|e| Trouble::NoAnswer(reason(&e)))?;
        let to = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        Trouble::of_status(response.status().as_u16(), to)?;
        let length = response.body().content_length();
        Ok(Answer { body: Box::new(response.into_body().into_reader()), length })
    }

    /// The proxy that a plain address is to be asked from. ureq opens a tunnel for these too, which proxies often allow
    /// for encrypted connections only.
    fn plain_proxy(&self, url: &str) -> Option<&ureq::Proxy> {
        let proxy = self.proxies[0].as_ref().filter(|p| p.protocol() == ureq::ProxyProtocol::Http)?;
        let uri: ureq::http::Uri = url.strip_prefix("http:").and(Some(url))?.parse().ok()?;
        (!proxy.is_no_proxy(&uri)).then_some(proxy)
    }

    /// Asks a proxy for a whole address (RFC 9112, 3.2.2). HTTP/1.0, so that the body is sent as it is.
    fn forward(&self, proxy: &ureq::Proxy, address: &Address) -> Result<Answer, Trouble> {
        let trouble = |e: std::io::Error| Trouble::NoAnswer(format!("the proxy `{}`: {e}", proxy.host()));
        let mut last = None;
        let ips = (proxy.host(), proxy.port()).to_socket_addrs().map_err(trouble)?;
        let stream = ips
            .into_iter()
            .find_map(|ip| TcpStream::connect_timeout(&ip, CONNECT).map_err(|e| last = Some(e)).ok());
        let mut stream = match (stream, last) {
            (Some(stream), _) => stream,
            (None, Some(e)) => return Err(trouble(e)),
            (None, None) => {
                return Err(Trouble::Connection(format!("the proxy `{}` has no address", proxy.host())));
            }
        };
        stream.set_read_timeout(Some(self.stall)).map_err(trouble)?;
        stream.set_write_timeout(Some(self.stall)).map_err(trouble)?;
        let url = address.url();
        let host = url.split('/').nth(2).unwrap_or_default();
        let mut head =
            format!("GET {url} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\nAccept: */*\r\n");
        if let Some(login) = address.authorization() {
            head += &format!("Authorization: {login}\r\n");
        }
        if let Some(user) = proxy.username() {
            let login = format!("{user}:{}", proxy.password().unwrap_or_default());
            head += &format!("Proxy-Authorization: {}\r\n", basic(login.as_bytes()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).map_err(trouble)?;
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader).map_err(trouble)?;
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        Trouble::of_status(status, header("location"))?;
        if header("transfer-encoding").is_some() {
            return Err(Trouble::Connection(format!(
                "the proxy `{}` answers in a newer protocol",
                proxy.host()
            )));
        }
        let length = header("content-length").and_then(|l| l.parse().ok());
        Ok(Answer {
            body: match length {
                Some(length) => Box::new(reader.take(length)),
                None => Box::new(reader),
            },
            length,
        })
    }

    /// Downloads: `take` reads the body, and is called again from the start when the connection fails midway.
    pub(crate) fn get<T>(
        &self,
        address: &Address,
        mut take: impl FnMut(Answer) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let mut pause = self.first_pause;
        let mut tried = 1;
        let mut moved = 0;
        let mut address = Cow::Borrowed(address);
        let start = Instant::now();
        loop {
            match self.begin(&address).and_then(&mut take) {
                Err(Trouble::Moved(to)) if moved < 5 => {
                    moved += 1;
                    address = Cow::Owned(address.moved(&to).ok_or(Trouble::Moved(to))?);
                }
                // Whoever has not answered for so long does not answer.
                Err(trouble @ Trouble::NoAnswer(_)) if start.elapsed() > PATIENCE => return Err(trouble),
                Err(trouble) if trouble.may_pass() && tried < self.tries => {
                    std::thread::sleep(pause);
                    pause *= 3;
                    tried += 1;
                }
                other => return other,
            }
        }
    }

    /// Downloads a small file into memory.
    pub(crate) fn get_bytes(&self, address: &Address, limit: u64) -> Result<Vec<u8>, Trouble> {
        self.get(address, |answer| {
            let mut data = Vec::new();
            answer.body.take(limit + 1).read_to_end(&mut data).map_err(|e| Trouble::from_read(&e))?;
            match data.len() as u64 > limit {
                true => Err(Trouble::TooBig),
                false => Ok(data),
            }
        })
    }
}

/// Looks each name up once. Without this every request of a hundred asks again, and the first answer that gets lost on
/// its way ends them all.
#[derive(Debug, Default)]
struct Names {
    known: Mutex<BTreeMap<String, ResolvedSocketAddrs>>,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let place = format!("{:?} {:?}", uri.scheme(), uri.authority());
        // Held during the look-up: whoever wants the same name waits for the answer.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addresses) = known.get(&place) {
            let mut again = self.empty();
            addresses.iter().for_each(|a| again.push(*a));
            return Ok(again);
        }
        let look_up = || DefaultResolver::default().resolve(uri, config, timeout);
        let found = match look_up() {
            Err(ureq::Error::Io(_) | ureq::Error::Timeout(_)) => look_up()?,
            other => other?,
        };
        let mut kept = self.empty();
        found.iter().for_each(|a| kept.push(*a));
        known.insert(place, kept);
        Ok(found)
    }
}

/// Reads status and headers, whose names are made lower-case.
fn read_head(reader: &mut impl BufRead) -> std::io::Result<(u16, Vec<(String, String)>)> {
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "its answer is not HTTP");
    let mut reader = reader.take(64 * 1024);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    if !words.next().is_some_and(|w| w.starts_with("HTTP/1.")) {
        return Err(bad());
    }
    let status = words.next().and_then(|w| w.trim().parse().ok()).ok_or_else(bad)?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None if line.trim().is_empty() => return Ok((status, headers)),
            None => return Err(bad()),
        }
    }
}

/// Certificates of the host, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    let certs: Vec<_> = found.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
    TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certs))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Why there was no answer.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "it does not answer in time".into(),
        ureq::Error::HostNotFound => "its name cannot be resolved".into(),
        ureq::Error::ConnectionFailed => "it cannot be reached".into(),
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::ConnectProxyFailed(_) => "the proxy refuses the connection".into(),
        ureq::Error::Rustls(e) => format!("its certificate or encryption is not accepted: {e}"),
        e => e.to_string(),
    }
}

/// Why a download failed, before it is known what was downloaded.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No connection, or nothing on it.
    NoAnswer(String),
    /// A connection that broke.
    Connection(String),
    /// The server says where else it is.
    Moved(String),
    /// The server does not have it.
    Missing,
    /// The server wants a login or forbids it.
    Refused(u16),
    /// Another status.
    Status(u16),
    /// The content is not what was promised; the sum that came.
    Wrong(String),
    /// Fewer or more bytes than promised: got, wanted.
    Size(u64, u64),
    /// More than is sensible.
    TooBig,
    /// The local file could not be written.
    File(codchi_fs::FsError),
}

impl Trouble {
    fn of_status(status: u16, location: Option<&str>) -> Result<(), Trouble> {
        match status {
            200 => Ok(()),
            301 | 302 | 303 | 307 | 308 if location.is_some() => {
                Err(Trouble::Moved(location.unwrap_or_default().to_owned()))
            }
            404 | 410 => Err(Trouble::Missing),
            401 | 403 | 407 => Err(Trouble::Refused(status)),
            _ => Err(Trouble::Status(status)),
        }
    }

    pub(crate) fn from_read(error: &std::io::Error) -> Trouble {
        Trouble::Connection(match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "it stopped sending".into(),
            _ => error.to_string(),
        })
    }

    fn may_pass(&self) -> bool {
        match self {
            Trouble::NoAnswer(_) | Trouble::Connection(_) | Trouble::Size(..) => true,
            Trouble::Status(s) => *s >= 500 || *s == 429 || *s == 408,
            _ => false,
        }
    }
}
