//! Why a source could not be had, in the words of git, ssh and curl.
//!
//! Nix passes on what these programs write and then complains of what follows from it, such as a branch that it does not find
//! in an empty copy. What a person needs is the first reason, and what mends it.

use codchi_core::report::Kind;

/// Why a source could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key of an ssh host is not known.
    UnknownHost,
    /// An ssh host has another key than before.
    ChangedHost,
    /// ssh has no key that the host accepts.
    Key,
    /// No name and password, or token, or one that is not accepted.
    Credentials,
    /// The certificate of a server is not trusted.
    Certificate,
    /// ssh does not accept its own configuration.
    SshConfiguration,
    /// git or ssh is not installed.
    Program,
    /// There is no such repository, or it is kept from whoever asks.
    Repository,
    /// The repository has no such branch, tag or commit.
    Version,
    /// The host does not answer.
    Unreachable,
}

/// Texts that tell a refusal, the surer ones first.
const SIGNS: &[(&str, Refusal)] = &[
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", Refusal::ChangedHost),
    ("Host key verification failed", Refusal::UnknownHost),
    ("Bad owner or permissions on", Refusal::SshConfiguration),
    ("Bad configuration option", Refusal::SshConfiguration),
    ("Permission denied (publickey", Refusal::Key),
    ("Permission denied (", Refusal::Key),
    ("Too many authentication failures", Refusal::Key),
    ("could not read Username", Refusal::Credentials),
    ("could not read Password", Refusal::Credentials),
    ("Authentication failed", Refusal::Credentials),
    ("HTTP error 401", Refusal::Credentials),
    ("HTTP error 403", Refusal::Credentials),
    ("error: 403", Refusal::Credentials),
    ("certificate", Refusal::Certificate),
    ("executing 'git'", Refusal::Program),
    ("cannot run ssh", Refusal::Program),
    ("Could not resolve host", Refusal::Unreachable),
    ("Couldn't connect", Refusal::Unreachable),
    ("Could not connect", Refusal::Unreachable),
    ("Failed to connect", Refusal::Unreachable),
    ("Connection refused", Refusal::Unreachable),
    ("Connection timed out", Refusal::Unreachable),
    ("Connection reset", Refusal::Unreachable),
    ("No route to host", Refusal::Unreachable),
    ("Network is unreachable", Refusal::Unreachable),
    ("timed out", Refusal::Unreachable),
    ("couldn't find remote ref", Refusal::Version),
    ("not our ref", Refusal::Version),
    ("Cannot find Git revision", Refusal::Version),
    ("does not appear to be a git repository", Refusal::Repository),
    ("Repository not found", Refusal::Repository),
    ("repository '", Refusal::Repository),
    ("HTTP error 404", Refusal::Repository),
    ("error: 404", Refusal::Repository),
];

/// What a failed fetch wrote: the reason, and the line that tells it.
pub fn read(text: &str) -> Option<(Refusal, String)> {
    SIGNS.iter().find_map(|(sign, refusal)| {
        let line = text.lines().find(|l| l.contains(sign))?;
        let line = line.trim().trim_start_matches("error:").trim_start_matches("fatal:").trim();
        Some((*refusal, line.trim_matches('@').trim().to_owned()))
    })
}

impl Refusal {
    /// What kind of failure it is.
    pub fn kind(self) -> Kind {
        match self {
            Refusal::Program => Kind::Host,
            _ => Kind::Failed,
        }
    }

    /// In words.
    pub fn message(self) -> &'static str {
        match self {
            Refusal::UnknownHost => "the key of its host is not known to ssh",
            Refusal::ChangedHost => "its host shows another key than the one ssh knows",
            Refusal::Key => "its host accepts none of the keys that ssh has",
            Refusal::Credentials => "it wants a name and password, or a token",
            Refusal::Certificate => "the certificate of its server is not trusted",
            Refusal::SshConfiguration => "ssh does not accept its configuration",
            Refusal::Program => "a program is missing",
            Refusal::Repository => "there is no such repository, or you may not see it",
            Refusal::Version => "the repository has no such branch, tag or commit",
            Refusal::Unreachable => "its host cannot be reached",
        }
    }

    /// What mends it; `host` is what the reference names, where it names one.
    pub fn hints(self, host: Option<&str>) -> Vec<String> {
        let host = host.unwrap_or("HOST");
        let (plain, port) = host.rsplit_once(':').unwrap_or((host, ""));
        let port = if port.is_empty() { String::new() } else { format!(" -p {port}") };
        match self {
            Refusal::UnknownHost => vec![
                format!("look at its key with `ssh-keyscan{port} {plain}`, and compare it with what the host's owner publishes"),
                format!("`ssh{port} {plain}` asks whether to trust it, and remembers the answer"),
            ],
            Refusal::ChangedHost => vec![
                "ask the host's owner whether that is right: someone may be listening".into(),
                format!("if it is, `ssh-keygen -R {}` forgets the old key", if port.is_empty() { plain.into() } else { format!("'[{plain}]{}'", port.replace(" -p ", ":")) }),
            ],
            Refusal::Key => vec![
                format!("`ssh{port} {plain}` must get in without asking: give your public key to the host"),
                "a key with a passphrase has to be in an agent: `ssh-add`".into(),
            ],
            Refusal::Credentials => vec![
                "have them remembered by git: `git config --global credential.helper store` (or another helper), then fetch it once with git".into(),
                "or name them for one call: `--auth-from env:VARIABLE`, `file:PATH`, `netrc` or `git`".into(),
            ],
            Refusal::Certificate => vec![
                "for an authority of your own, set `SSL_CERT_FILE` to a file with its certificate".into(),
            ],
            Refusal::SshConfiguration => vec!["`ssh -G HOST` shows what is wrong with it".into()],
            Refusal::Program => vec!["Debian, Ubuntu: `sudo apt install git openssh-client`".into()],
            Refusal::Repository => {
                vec!["a private one on a forge looks like none: give credentials with `--auth-from`".into()]
            }
            Refusal::Version => vec!["`git ls-remote URL` lists what there is".into()],
            Refusal::Unreachable => vec![
                "check the network, or use `--offline` with what is already there".into(),
            ],
        }
    }
}

/// The host that a reference names, with its port.
pub fn host_of(reference: &str) -> Option<&str> {
    let (_, rest) = reference.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_found_among_what_follows_from_it() {
        for (text, refusal, line) in [
            (
                "Host key verification failed.\nfatal: Could not read from remote repository.\nerror: resolving Git reference 'master'",
                Refusal::UnknownHost,
                "Host key verification failed.",
            ),
            (
                "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
                Refusal::ChangedHost,
                "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!",
            ),
            (
                "fatal: could not read Username for 'https://h': terminal prompts disabled",
                Refusal::Credentials,
                "could not read Username for 'https://h': terminal prompts disabled",
            ),
            (
                "error: unable to download 'https://h/x': HTTP error 401",
                Refusal::Credentials,
                "unable to download 'https://h/x': HTTP error 401",
            ),
            (
                "fatal: unable to access 'https://h/': server certificate verification failed. CAfile: none",
                Refusal::Certificate,
                "unable to access 'https://h/': server certificate verification failed. CAfile: none",
            ),
            (
                "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.",
                Refusal::Unreachable,
                "ssh: connect to host h port 22: Connection refused",
            ),
        ] {
            assert_eq!(read(text), Some((refusal, line.into())), "{text}");
        }
        assert_eq!(read("error: undefined variable 'x'"), None);
    }

    #[test]
    fn the_host_is_read_without_the_person() {
        assert_eq!(host_of("git+ssh://git@h:22/x?ref=a"), Some("h:22"));
        assert_eq!(host_of("https://h"), Some("h"));
        assert_eq!(host_of("github:a/b"), None);
    }

    #[test]
    fn hints_name_the_port_where_there_is_one() {
        assert!(Refusal::UnknownHost.hints(Some("h:22"))[0].contains("ssh-keyscan -p 22 h"));
        assert!(Refusal::ChangedHost.hints(Some("h:22"))[1].contains("ssh-keygen -R '[h]:22'"));
        assert!(Refusal::ChangedHost.hints(Some("h"))[1].contains("ssh-keygen -R h"));
    }
}
