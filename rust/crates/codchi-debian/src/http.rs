//! HTTP, with the host's certificates and proxy, time limits and retries.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::header;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::error::{Error, Result};
use crate::mirror::Address;

/// How often a download is begun before it counts as failed.
const TRIES: u32 = 4;
/// Longest wait for a connection, and for the first byte of an answer.
const CONNECT: Duration = Duration::from_secs(15);
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
            let bad = || Error::BadAddress { setting: "base.proxy" };
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
            let mut config = Config::builder()
                .http_status_as_error(false)
                .proxy(self.proxies[slot].clone())
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(STALL))
                .timeout_per_read(Some(self.stall))
                .max_idle_connections_per_host(16)
                .user_agent(concat!("codchi/", env!("CARGO_PKG_VERSION")));
            // A plain address may lead on to an encrypted one, so both have certificates.
            config = config.tls_config(tls());
            config.build().new_agent()
        })
    }

    /// Whether the server answers with success within a time.
    pub(crate) fn answers(&self, address: &Address, within: Duration) -> bool {
        let request = self.agent(address.url()).get(address.url());
        let response = request.config().timeout_global(Some(within)).build().call();
        response.is_ok_and(|r| r.status().is_success())
    }

    /// Begins one download, without retries.
    fn begin(&self, address: &Address) -> Result<Answer, Trouble> {
        let mut request = self.agent(address.url()).get(address.url());
        if let Some(login) = address.authorization() {
            request = request.header(header::AUTHORIZATION, login);
        }
        let response = request.call().map_err(|e| Trouble::from_ureq(&e))?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            404 | 410 => return Err(Trouble::Missing),
            401 | 403 | 407 => return Err(Trouble::Refused(status)),
            _ => return Err(Trouble::Status(status)),
        }
        let length = response.body().content_length();
        Ok(Answer { body: Box::new(response.into_body().into_reader()), length })
    }

    /// Downloads: `take` reads the body, and is called again from the start when the connection fails midway.
    pub(crate) fn get<T>(
        &self,
        address: &Address,
        mut take: impl FnMut(Answer) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let mut pause = self.first_pause;
        let mut tried = 1;
        loop {
            match self.begin(address).and_then(&mut take) {
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

/// Certificates of the host, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    let certs: Vec<_> = found.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
    TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certs))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Why a download failed, before it is known what was downloaded.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No connection, or a broken one.
    Connection(String),
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
    fn from_ureq(error: &ureq::Error) -> Trouble {
        Trouble::Connection(match error {
            ureq::Error::Timeout(_) => "it does not answer in time".into(),
            ureq::Error::HostNotFound => "its name cannot be resolved".into(),
            ureq::Error::ConnectionFailed => "it cannot be reached".into(),
            ureq::Error::Io(e) => e.to_string(),
            ureq::Error::ConnectProxyFailed(_) => "the proxy refuses the connection".into(),
            ureq::Error::Rustls(e) => format!("its certificate or encryption is not accepted: {e}"),
            e => e.to_string(),
        })
    }

    pub(crate) fn from_read(error: &std::io::Error) -> Trouble {
        Trouble::Connection(match error.kind() {
            std::io::ErrorKind::TimedOut => "it stopped sending".into(),
            _ => error.to_string(),
        })
    }

    fn may_pass(&self) -> bool {
        match self {
            Trouble::Connection(_) | Trouble::Size(..) => true,
            Trouble::Status(s) => *s >= 500 || *s == 429 || *s == 408,
            _ => false,
        }
    }
}
