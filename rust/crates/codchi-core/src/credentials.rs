//! Credentials of private sources: where a person says that they are, and the files in which git and Nix read them.

use std::path::PathBuf;

use crate::source::decode;

/// Where credentials come from: `[HOST=]WHERE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFrom {
    /// Of this host only.
    pub host: Option<String>,
    /// Where they are.
    pub origin: Origin,
}

/// Where credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// What git remembers, by its credential helpers.
    Git,
    /// A netrc file; none: the person's own.
    Netrc(Option<PathBuf>),
    /// An environment variable.
    Env(String),
    /// A file.
    File(PathBuf),
}

/// Text that is no [`AuthFrom`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` does not say where credentials are")]
pub struct AuthFromError {
    given: String,
}

impl std::str::FromStr for AuthFrom {
    type Err = AuthFromError;

    fn from_str(s: &str) -> Result<Self, AuthFromError> {
        let refuse = || AuthFromError { given: crate::text::printable_line(s) };
        let (host, origin) = match s.split_once('=') {
            Some((host, rest)) if is_host(host) => (Some(host.to_lowercase()), rest),
            _ => (None, s),
        };
        let origin = match origin.split_once(':') {
            None if origin == "git" => Origin::Git,
            None if origin == "netrc" => Origin::Netrc(None),
            Some(("netrc", file)) if !file.is_empty() => Origin::Netrc(Some(file.into())),
            Some(("env", name)) if !name.is_empty() && !name.contains('=') => Origin::Env(name.into()),
            Some(("file", file)) if !file.is_empty() => Origin::File(file.into()),
            _ => return Err(refuse()),
        };
        Ok(AuthFrom { host, origin })
    }
}

fn is_host(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]_".contains(c))
        // `env:X=`, `file:X=` are no hosts.
        && !["env:", "file:", "netrc:"].iter().any(|p| s.starts_with(p))
}

/// A server that sources come from over https.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Its name, with the port where the reference has one.
    pub host: String,
    /// The person in the reference.
    pub login: Option<String>,
    /// Whether Nix speaks to it as to a GitLab.
    pub gitlab: bool,
}

/// The server of a reference; none where it is not reached over https.
pub fn server(url: &str) -> Option<Server> {
    let (scheme, rest) = url.split_once(':')?;
    let forge = match scheme {
        "github" => Some("github.com"),
        "gitlab" => Some("gitlab.com"),
        "sourcehut" => Some("git.sr.ht"),
        "git+https" | "https" | "tarball+https" | "file+https" | "hg+https" => None,
        _ => return None,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (login, host) = match forge {
        Some(usual) => {
            let own = query.split('&').find_map(|q| q.strip_prefix("host="));
            (None, own.map_or(usual.to_owned(), decode))
        }
        None => {
            let authority = path.strip_prefix("//")?.split('/').next()?;
            let (person, host) = authority.rsplit_once('@').unwrap_or(("", authority));
            let login = person.split(':').next().filter(|l| !l.is_empty()).map(decode);
            (login, host.to_owned())
        }
    };
    (!host.is_empty()).then(|| Server { host: host.to_lowercase(), login, gitlab: scheme == "gitlab" })
}

/// A name and password, or a token in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name; forges look only at the token.
    pub login: String,
    /// The password or token.
    pub password: String,
}

// What is secret is in no log.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("login", &self.login).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads `TOKEN` or `LOGIN:PASSWORD`, as a file or variable holds it; none where that is empty or of several lines.
    pub fn parse(text: &str, login: Option<&str>) -> Option<Credentials> {
        let text = text.trim();
        if text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return None;
        }
        let (given, password) = match text.split_once(':') {
            Some((l, p)) if !l.is_empty() && !p.is_empty() => (Some(l), p),
            _ => (None, text),
        };
        // What forges that take tokens as passwords take as a name.
        let login = given.or(login).unwrap_or("oauth2");
        Some(Credentials { login: login.into(), password: password.into() })
    }

    /// Reads what `git credential fill` answers.
    pub fn of_git(answer: &str) -> Option<Credentials> {
        let field = |name: &str| {
            answer.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        Some(Credentials { login: field("username")?, password: field("password")? })
    }

    /// Reads a netrc file for a host.
    pub fn of_netrc(text: &str, host: &str) -> Option<Credentials> {
        let host = host.split(':').next().unwrap_or(host);
        let without_comments: Vec<&str> =
            text.lines().map(|l| if l.trim_start().starts_with('#') { "" } else { l }).collect();
        let text = without_comments.join("\n");
        let mut words = text.split_whitespace();
        let (mut here, mut login, mut password) = (false, None, None);
        while let Some(word) = words.next() {
            match word {
                "machine" | "default" => {
                    if here && password.is_some() {
                        break;
                    }
                    here = word == "default" || words.next() == Some(host);
                    (login, password) = (None, None);
                }
                "login" if here => login = words.next(),
                "password" if here => password = words.next(),
                _ => {}
            }
        }
        let password = password.filter(|_| here)?;
        Some(Credentials { login: login.unwrap_or("oauth2").into(), password: password.into() })
    }
}

/// The files of one call.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// For curl inside Nix.
    pub netrc: String,
    /// For `git credential-store`.
    pub git: String,
    /// A line of nix.conf, `access-tokens`.
    pub tokens: String,
}

/// What is written for git and Nix.
pub fn files(all: &[(Server, Credentials)]) -> Files {
    let mut files = Files::default();
    let mut tokens = Vec::new();
    for (server, c) in all {
        let name = server.host.split(':').next().unwrap_or(&server.host);
        files.netrc.push_str(&format!("machine {name} login {} password {}\n", c.login, c.password));
        files.git.push_str(&format!(
            "https://{}:{}@{}\n",
            escape(&c.login),
            escape(&c.password),
            server.host
        ));
        let kind = if server.gitlab { "PAT:" } else { "" };
        tokens.push(format!("{name}={kind}{}", c.password));
    }
    if !tokens.is_empty() {
        files.tokens = format!("extra-access-tokens = {}\n", tokens.join(" "));
    }
    files
}

fn escape(s: &str) -> String {
    s.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(s: &str) -> Result<AuthFrom, AuthFromError> {
        s.parse()
    }

    #[test]
    fn where_credentials_are_is_read_with_and_without_a_host() {
        let at = |host: Option<&str>, origin| Ok(AuthFrom { host: host.map(Into::into), origin });
        assert_eq!(parse("git"), at(None, Origin::Git));
        assert_eq!(
            parse("Git.Example.org:8443=netrc"),
            at(Some("git.example.org:8443"), Origin::Netrc(None))
        );
        assert_eq!(parse("env:TOKEN"), at(None, Origin::Env("TOKEN".into())));
        assert_eq!(parse("file:/a=b"), at(None, Origin::File("/a=b".into())));
        assert_eq!(parse("h=file:/a"), at(Some("h"), Origin::File("/a".into())));
        for bad in ["", "token", "env:", "file:", "h=", "h=x", "env:A=B"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_of_references() {
        let host = |u: &str| server(u).map(|s| s.host);
        assert_eq!(host("git+https://me@Example.org:8443/a/b?ref=x").as_deref(), Some("example.org:8443"));
        assert_eq!(server("git+https://me@h/a").unwrap().login.as_deref(), Some("me"));
        assert_eq!(host("github:a/b?host=ghe.example.org").as_deref(), Some("ghe.example.org"));
        assert!(server("gitlab:a/b").unwrap().gitlab);
        for none in ["git+ssh://h/a", "path:/a", "git+file:///a", "https:x"] {
            assert_eq!(host(none), None, "{none}");
        }
    }

    #[test]
    fn tokens_and_passwords_are_read() {
        let c = Credentials::parse("abc\n", Some("me")).unwrap();
        assert_eq!((c.login.as_str(), c.password.as_str()), ("me", "abc"));
        let c = Credentials::parse("you:a:b", Some("me")).unwrap();
        assert_eq!((c.login.as_str(), c.password.as_str()), ("you", "a:b"));
        assert!(Credentials::parse(" \n", None).is_none() && Credentials::parse("a\nb", None).is_none());
        assert!(!format!("{c:?}").contains("a:b"));
    }

    #[test]
    fn a_netrc_is_read_by_its_machine() {
        let text = "# machine h password no\nmachine a\n  login x password 1\nmachine h login y\npassword 2\nmachine b password 3\ndefault password 4";
        let password = |h| Credentials::of_netrc(text, h).map(|c| c.password);
        assert_eq!(password("a").as_deref(), Some("1"));
        assert_eq!(password("h:8443").as_deref(), Some("2"));
        assert_eq!(password("b").as_deref(), Some("3"));
        assert_eq!(password("other").as_deref(), Some("4"));
        assert_eq!(Credentials::of_netrc("machine a login x", "a"), None);
    }

    #[test]
    fn files_hold_them_as_each_program_reads_them() {
        let c = Credentials { login: "a@b".into(), password: "p/:w".into() };
        let server = |gitlab| Server { host: "h:1".into(), login: None, gitlab };
        let f = files(&[(server(false), c.clone()), (server(true), c)]);
        assert_eq!(f.git.lines().next(), Some("https://a%40b:p%2F%3Aw@h:1"));
        assert_eq!(f.netrc.lines().next(), Some("machine h login a@b password p/:w"));
        assert_eq!(f.tokens, "extra-access-tokens = h=p/:w h=PAT:p/:w\n");
    }
}
