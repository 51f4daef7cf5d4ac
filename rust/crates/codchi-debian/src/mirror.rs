//! Where packages come from: settings, the host's apt configuration, or Debian's own address.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::http::Client;
use crate::packages::Archive;

pub use crate::fetch::Fetch;
pub use crate::release::Freshness;

/// What a person may set about mirrors.
#[derive(Clone, Default)]
pub struct Settings {
    /// Address of the main archive (`base.mirror`), such as `https://mirror.example/debian`.
    pub mirror: Option<String>,
    /// Address of the security archive (`base.security-mirror`); the main one with `-security` appended where absent.
    pub security_mirror: Option<String>,
    /// Proxy for all downloads.
    pub proxy: Option<String>,
    /// Use a mirror whose lists are past their date (`base.accept-expired`).
    pub accept_stale: bool,
    /// Files with further OpenPGP keys that may sign a Release file (`base.keyrings`), for mirrors that sign anew.
    pub keyrings: Vec<PathBuf>,
}

impl Settings {
    /// Adds what the environment says: `CODCHI_BASE_MIRROR`, `CODCHI_BASE_SECURITY_MIRROR`, `CODCHI_BASE_ACCEPT_STALE`.
    pub fn with_env(self) -> Self {
        let var = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        let stale = var("CODCHI_BASE_ACCEPT_STALE").is_some_and(|v| v != "0" && v != "false");
        Settings {
            mirror: var("CODCHI_BASE_MIRROR").or(self.mirror),
            security_mirror: var("CODCHI_BASE_SECURITY_MIRROR").or(self.security_mirror),
            proxy: self.proxy,
            accept_stale: self.accept_stale || stale,
            keyrings: self.keyrings,
        }
    }
}

/// An address that may hold credentials, which it never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    url: String,
    authorization: Option<String>,
}

impl Address {
    /// Reads `http://` and `https://` addresses, with or without `user:password@`.
    pub fn parse(text: &str) -> Option<Address> {
        let text = text.trim().trim_end_matches('/');
        let (scheme, rest) = text.split_once("://")?;
        if scheme != "http" && scheme != "https" {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, authority),
        };
        let usable = |b: u8| b.is_ascii_graphic() && !matches!(b, b'#' | b'"' | b'\\');
        if host.is_empty() || !host.bytes().chain(path.bytes()).all(usable) {
            return None;
        }
        let authorization = login.map(|l| basic(&percent_decode(l)));
        Some(Address { url: format!("{scheme}://{host}{path}"), authorization })
    }

    /// Where a server at this address sends to; credentials go along to the same server only.
    pub(crate) fn moved(&self, to: &str) -> Option<Address> {
        let origin = |url: &str| url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        let url =
            if to.starts_with('/') && !to.starts_with("//") { origin(&self.url) + to } else { to.to_owned() };
        let mut address = Address::parse(&url)?;
        if address.authorization.is_none() && origin(&address.url) == origin(&self.url) {
            address.authorization.clone_from(&self.authorization);
        }
        Some(address)
    }

    /// The address without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Value of the header `Authorization`, if there are credentials.
    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 3).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[i], code.and_then(|d| u8::from_str_radix(d, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

/// RFC 7617, with the alphabet of RFC 4648.
pub(crate) fn basic(login: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("Basic ");
    for chunk in login.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// A mirror of Debian, ready to be asked.
pub struct Mirror {
    main: Address,
    security: Address,
    pub(crate) accept_stale: bool,
    pub(crate) keyrings: Vec<PathBuf>,
    pub(crate) client: Client,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirror({}, {})", self.main, self.security)
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.main)
    }
}

/// Debian's own address, answered by a server near to whoever asks.
const DEFAULT: &str = "https://deb.debian.org/debian";

impl Mirror {
    /// The mirror of the settings; else the one that the host's apt uses, when the host is Debian; else Debian's own.
    pub fn discover(settings: &Settings) -> Result<Mirror> {
        Mirror::discover_in(settings, Path::new("/etc/apt"))
    }

    /// The same with apt's configuration in another folder.
    pub fn discover_in(settings: &Settings, apt: &Path) -> Result<Mirror> {
        let parse =
            |setting: &'static str, text: &str| Address::parse(text).ok_or(Error::BadAddress { setting });
        let Apt { main, mut security, conf } = match &settings.mirror {
            Some(text) => Apt {
                main: Some(parse("the setting `base.mirror`", text)?),
                security: None,
                conf: apt_conf(apt),
            },
            None => from_apt(apt),
        };
        if let Some(text) = &settings.security_mirror {
            security = Some(parse("the setting `base.security-mirror`", text)?);
        }
        let main = match main {
            Some(m) => m,
            None => parse("the setting `base.mirror`", DEFAULT)?,
        };
        let security = match security {
            Some(s) => s,
            None => {
                Address { url: format!("{}-security", main.url), authorization: main.authorization.clone() }
            }
        };
        let client = Client::new(settings.proxy.as_deref(), &conf)?;
        Ok(Mirror {
            main,
            security,
            accept_stale: settings.accept_stale,
            keyrings: settings.keyrings.clone(),
            client,
        })
    }

    /// The address of an archive.
    pub fn archive(&self, archive: Archive) -> &Address {
        match archive {
            Archive::Main => &self.main,
            Archive::Security => &self.security,
        }
    }

    /// The real address of `mirror://debian/PATH` or `mirror://debian-security/PATH`; other addresses stay.
    pub(crate) fn resolve(&self, url: &str) -> Option<Address> {
        let Some(rest) = url.strip_prefix("mirror://") else { return Address::parse(url) };
        let (host, path) = rest.split_once('/')?;
        let archive = [Archive::Main, Archive::Security].into_iter().find(|a| a.host() == host)?;
        Some(self.at(archive, path))
    }

    /// The address of a path below an archive.
    pub(crate) fn at(&self, archive: Archive, path: &str) -> Address {
        let base = self.archive(archive);
        // `+` means a blank to some servers (object stores); `~` needs no escape.
        let path = path.replace('+', "%2B");
        Address { url: format!("{}/{path}", base.url), authorization: base.authorization.clone() }
    }
}

/// Whether an address answers at all within a time, as the environment's proxy allows.
pub fn reachable(url: &str, within: std::time::Duration) -> bool {
    let client = Client::new(None, &BTreeMap::new());
    match (Address::parse(url), client) {
        (Some(address), Ok(client)) => client.answers(&address, within),
        _ => false,
    }
}

/// Downloads a small file for which no sum is known, such as one that holds a sum.
pub fn get(url: &str, limit: u64) -> Result<Vec<u8>> {
    let address = Address::parse(url).ok_or(Error::BadAddress { setting: "what is to be downloaded" })?;
    let client = Client::new(None, &BTreeMap::new())?;
    client.get_bytes(&address, limit).map_err(|t| Error::download(t, "the file", &address))
}

#[derive(Default)]
struct Apt {
    main: Option<Address>,
    security: Option<Address>,
    conf: BTreeMap<String, String>,
}

/// An entry of apt's sources.
struct Entry {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

/// Reads apt's sources. What cannot be read or understood is passed over: apt's files are not ours to check.
fn from_apt(apt: &Path) -> Apt {
    let mut found = Apt { conf: apt_conf(apt), ..Apt::default() };
    let mut entries = Vec::new();
    let mut files = vec![apt.join("sources.list")];
    if let Ok(more) = codchi_fs::read_dir(apt.join("sources.list.d")) {
        files.extend(more.into_iter().map(|e| e.path()));
    }
    for file in files {
        let Ok(Some(text)) = codchi_fs::read_if_exists(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822_sources(&text, &mut entries),
            Some("list") => list_sources(&text, &mut entries),
            _ => {}
        }
    }
    for archive in [Archive::Main, Archive::Security] {
        let mut best: Option<(u32, Address)> = None;
        for entry in &entries {
            let Some(address) = Address::parse(&entry.uri) else { continue };
            let Some(score) = likeness(entry, &address, archive) else { continue };
            if best.as_ref().is_none_or(|(s, _)| score > *s) {
                best = Some((score, address));
            }
        }
        let address = best.map(|(_, address)| with_auth_conf(address, apt));
        match archive {
            Archive::Main => found.main = address,
            Archive::Security => found.security = address,
        }
    }
    found
}

/// Suites of Debian, by the names that sources use.
const SUITES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// How much a source looks like one of Debian's two archives. Others publish under Debian's suite names too, so the
/// keys it is signed by and its path count; `None` when it is certainly another's.
fn likeness(entry: &Entry, address: &Address, archive: Archive) -> Option<u32> {
    let any = |suffixes: &[&str]| {
        entry
            .suites
            .iter()
            .any(|s| SUITES.iter().any(|known| suffixes.iter().any(|x| *s == format!("{known}{x}"))))
    };
    let of = if any(&["-security", "/updates"]) {
        Archive::Security
    } else if any(&["", "-updates"]) {
        Archive::Main
    } else {
        return None;
    };
    let debians_key = match &entry.signed_by {
        None => 0,
        Some(keys) if keys.contains("debian-archive") => 4,
        // Signed by keys that are not accepted here anyway.
        Some(_) => return None,
    };
    let last = address.url.rsplit('/').next().unwrap_or_default();
    let named = u32::from(last.contains("debian"));
    let updates = u32::from(any(&["-updates"]));
    (of == archive).then_some(debians_key + 2 * named + updates)
}

fn deb822_sources(text: &str, out: &mut Vec<Entry>) {
    for paragraph in text.replace("\r\n", "\n").split("\n\n") {
        let fields = crate::unpack::parse_fields(paragraph);
        let field = |name: &str| {
            let found = fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(name));
            found.map(|(_, v)| v.as_str())
        };
        let words = |name: &str| field(name).unwrap_or_default().split_whitespace().map(str::to_owned);
        let enabled = field("Enabled").unwrap_or("yes").to_ascii_lowercase();
        let off = matches!(enabled.as_str(), "no" | "false" | "off" | "0" | "without" | "disable");
        if off || !words("Types").any(|t| t == "deb") || !words("Components").any(|c| c == "main") {
            continue;
        }
        out.extend(words("URIs").map(|uri| Entry {
            uri,
            suites: words("Suites").collect(),
            signed_by: field("Signed-By").map(str::to_owned),
        }));
    }
}

fn list_sources(text: &str, out: &mut Vec<Entry>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(mut rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else {
            continue;
        };
        rest = rest.trim_start();
        let mut signed_by = None;
        if let Some(options) = rest.strip_prefix('[') {
            let Some((options, after)) = options.split_once(']') else { continue };
            signed_by =
                options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
            rest = after;
        }
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        if words.any(|c| c == "main") {
            out.push(Entry { uri: uri.to_owned(), suites: vec![suite.to_owned()], signed_by });
        }
    }
}

/// Credentials for an address from apt's `auth.conf` (the form of netrc; apt_auth.conf(5)).
fn with_auth_conf(address: Address, apt: &Path) -> Address {
    if address.authorization.is_some() {
        return address;
    }
    let mut files = vec![apt.join("auth.conf")];
    if let Ok(entries) = codchi_fs::read_dir(apt.join("auth.conf.d")) {
        files.extend(
            entries.into_iter().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conf")),
        );
    }
    for file in files {
        let Ok(Some(text)) = codchi_fs::read_if_exists(&file) else { continue };
        if let Some(login) = auth_for(&text, &address.url) {
            return Address { authorization: Some(basic(login.as_bytes())), ..address };
        }
    }
    address
}

fn auth_for(text: &str, url: &str) -> Option<String> {
    let text: Vec<&str> = text.lines().map(|l| l.split('#').next().unwrap_or_default()).collect();
    let text = text.join("\n");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (scheme, place) = url.split_once("://")?;
    for entry in words.split(|w| *w == "machine").skip(1) {
        let (machine, rest) = entry.split_first()?;
        let (wanted, host) = match machine.split_once("://") {
            Some((s, h)) => (s, h),
            // Without a scheme an entry is for encrypted connections only.
            None => ("https", *machine),
        };
        let beneath = place
            .strip_prefix(host)
            .is_some_and(|r| r.is_empty() || r.starts_with('/') || host.ends_with('/'));
        if wanted != scheme || !beneath {
            continue;
        }
        let value = |key: &str| rest.chunks(2).find(|p| p[0] == key).and_then(|p| p.get(1));
        if let (Some(user), Some(password)) = (value("login"), value("password")) {
            return Some(format!("{user}:{password}"));
        }
    }
    None
}

/// apt's configuration: full names, such as `acquire::http::proxy`, in lower case, to values.
fn apt_conf(apt: &Path) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut files = Vec::new();
    if let Ok(entries) = codchi_fs::read_dir(apt.join("apt.conf.d")) {
        files.extend(entries.into_iter().map(|e| e.path()));
    }
    files.push(apt.join("apt.conf"));
    for file in files {
        if let Ok(Some(text)) = codchi_fs::read_if_exists(&file) {
            parse_conf(&text, &mut values);
        }
    }
    values
}

/// Parses apt.conf(5): `Name::Part "value";` and `Name { Part "value"; };`, with comments.
fn parse_conf(text: &str, values: &mut BTreeMap<String, String>) {
    let mut scope: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut chars = text.chars().peekable();
    let key = |scope: &[String], word: &str| {
        let mut parts = scope.to_vec();
        parts.push(word.to_owned());
        parts.join("::").to_ascii_lowercase()
    };
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                for c in chars.by_ref() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            '"' => words.push(chars.by_ref().take_while(|c| *c != '"').collect()),
            '{' => {
                scope.push(words.first().cloned().unwrap_or_default());
                words.clear();
            }
            '}' => {
                scope.pop();
                words.clear();
            }
            ';' => {
                if let [name, value, ..] = &words[..] {
                    values.insert(key(&scope, name), value.clone());
                }
                words.clear();
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) =
                    chars.next_if(|c| !c.is_whitespace() && !matches!(c, ';' | '{' | '}' | '"'))
                {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discover(files: &[(&str, &str)], settings: &Settings) -> Result<Mirror> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            codchi_fs::create_dir_all(path.parent().unwrap()).unwrap();
            codchi_fs::write(path, text).unwrap();
        }
        Mirror::discover_in(settings, dir.path())
    }

    fn addresses(files: &[(&str, &str)]) -> (String, String) {
        let mirror = discover(files, &Settings::default()).unwrap();
        (mirror.archive(Archive::Main).to_string(), mirror.archive(Archive::Security).to_string())
    }

    #[test]
    fn debians_entries_are_told_from_others() {
        let sources = "Types: deb deb-src\n# why\nURIs: http://m.example/debian/\nSuites: bookworm bookworm-updates\n\
            Components: main contrib\n\nTypes: deb\nURIs: http://m.example/sec\nSuites: bookworm-security\nComponents: main\n";
        let others = "Types: deb\nURIs: https://packages.example/apt\nSuites: stable\nComponents: main\n\n\
            Types: deb\nURIs: https://x.example/debian\nSuites: nodistro\nComponents: main\n\n\
            Types: deb\nEnabled: no\nURIs: https://off.example/debian\nSuites: bookworm\nComponents: main\n\n\
            Types: deb-src\nURIs: https://src.example/debian\nSuites: bookworm\nComponents: main\n";
        let files = [("sources.list.d/a.sources", others), ("sources.list.d/b.sources", sources)];
        assert_eq!(addresses(&files), ("http://m.example/debian".into(), "http://m.example/sec".into()));

        let list = "# deb http://no.example/debian bookworm main\ndeb-src http://no.example/debian bookworm main\n\
            deb https://download.docker.example/linux/debian/docker bookworm stable\n\
            deb [signed-by=/usr/share/keyrings/vpn.gpg] https://vpn.example/stable/debian bookworm main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://one.example/debian bookworm main # here\n\
            deb http://one.example/debian-security bookworm-security main\n";
        assert_eq!(
            addresses(&[("sources.list", list)]),
            ("https://one.example/debian".into(), "http://one.example/debian-security".into())
        );
        // A company may call the archive anything; one that is also there with its updates looks more like it.
        let company = "deb http://tool.example/debian bookworm main\ndeb http://m.example/repo/deb-remote bookworm main\n";
        assert_eq!(addresses(&[("sources.list", company)]).0, "http://tool.example/debian");
        let company = "deb http://m.example/repo/deb-remote trixie main\n";
        assert_eq!(addresses(&[("sources.list", company)]).0, "http://m.example/repo/deb-remote");
        let ubuntu = "deb http://archive.ubuntu.example/ubuntu noble main\n";
        assert_eq!(addresses(&[("sources.list", ubuntu)]).0, DEFAULT);
        assert_eq!(addresses(&[]), (DEFAULT.into(), format!("{DEFAULT}-security")));
    }

    #[test]
    fn settings_win_over_the_host() {
        let list = [("sources.list", "deb http://host.example/debian bookworm main")];
        let settings =
            Settings { mirror: Some("http://mine.example/mirror/debian/".into()), ..Settings::default() };
        let mirror = discover(&list, &settings).unwrap();
        assert_eq!(mirror.to_string(), "http://mine.example/mirror/debian");
        assert_eq!(mirror.archive(Archive::Security).url(), "http://mine.example/mirror/debian-security");
        for bad in ["", "ftp://x/debian", "file:///debian", "http://", "http://a b/debian"] {
            let settings = Settings { mirror: Some(bad.into()), ..Settings::default() };
            assert!(matches!(discover(&list, &settings), Err(Error::BadAddress { .. })), "{bad}");
        }
    }

    #[test]
    fn credentials_are_sent_but_never_shown() {
        let settings =
            Settings { mirror: Some("https://me:s%65cret@m.example/debian".into()), ..Settings::default() };
        let mirror = discover(&[], &settings).unwrap();
        let address = mirror.resolve("mirror://debian-security/pool/x+y_1~2.deb").unwrap();
        // RFC 7617 form of `me:secret`.
        assert_eq!(address.authorization(), Some("Basic bWU6c2VjcmV0"));
        assert_eq!(address.url(), "https://m.example/debian-security/pool/x%2By_1~2.deb");
        for shown in [format!("{mirror} {mirror:?}"), format!("{address} {address:?}")] {
            assert!(!shown.contains("cret") && !shown.contains("me:"), "{shown}");
        }
    }

    #[test]
    fn apts_credentials_are_for_their_host_and_scheme_only() {
        let auth = "machine m.example/debian login me password s3 # c\nmachine http://plain.example login a password b\n";
        assert_eq!(auth_for(auth, "https://m.example/debian"), Some("me:s3".into()));
        assert_eq!(auth_for(auth, "http://m.example/debian"), None);
        assert_eq!(auth_for(auth, "https://m.example/debian-other"), None);
        assert_eq!(auth_for(auth, "https://m.example.evil/debian"), None);
        assert_eq!(auth_for(auth, "http://plain.example/x"), Some("a:b".into()));
    }

    #[test]
    fn apts_configuration_is_read_in_both_forms() {
        let mut values = BTreeMap::new();
        parse_conf(
            "// c\nAcquire::http::Proxy \"http://p:1\";\n/* x; */ Acquire { https { Proxy \"http://q:2\"; }; Retries 3; };\n# y\nAPT::X:: \"z\";",
            &mut values,
        );
        assert_eq!(values["acquire::http::proxy"], "http://p:1");
        assert_eq!(values["acquire::https::proxy"], "http://q:2");
        assert_eq!(values["acquire::retries"], "3");
    }
}
