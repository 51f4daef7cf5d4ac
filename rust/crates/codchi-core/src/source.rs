//! SOURCE arguments: paths, flake references, git URLs and forges' short forms.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::attr::{AttrPath, AttrPathError};
use crate::name::InputName;
use crate::report::{Diagnose, Kind};
use crate::text;

/// What parsing must know of the file system.
pub trait Look {
    /// The folder of a path with links resolved; none where there is no such folder.
    fn folder(&self, path: &Path) -> Option<PathBuf>;
    /// The top of the git work tree that holds a folder.
    fn git_root(&self, folder: &Path) -> Option<PathBuf>;
}

/// A flake, and perhaps one module of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Flake reference as written into a machine flake.
    pub url: String,
    /// What follows `#`.
    pub attr: Option<AttrPath>,
    /// The folder on this host, for a source that is one.
    pub folder: Option<PathBuf>,
}

/// A repository of git, and what of it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// As git itself names it.
    pub url: String,
    /// A branch or tag.
    pub reference: Option<String>,
    /// The hash of a commit.
    pub commit: Option<String>,
}

/// Which commit of a source to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The tip of a branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// One commit.
    Commit(String),
}

/// Why a source is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// There is no such folder.
    #[error("there is no folder `{}`", path.display())]
    NoFolder {
        /// As given, made absolute.
        path: PathBuf,
    },
    /// Neither a path nor a reference.
    #[error("`{given}` is neither a folder nor a flake reference")]
    Unknown {
        /// As given.
        given: String,
    },
    /// The text after `#`.
    #[error(transparent)]
    Attr(#[from] AttrPathError),
    /// It cannot be pinned.
    #[error("`{url}` cannot be pinned to a branch, tag or commit: it is not a repository")]
    NotARepository {
        /// The reference.
        url: String,
    },
    /// It is pinned already.
    #[error("`{url}` already names a branch, tag or commit")]
    Pinned {
        /// The reference.
        url: String,
    },
    /// A commit is not a hash.
    #[error("`{given}` is not a commit: give all 40 hexadecimal digits")]
    Commit {
        /// As given.
        given: String,
    },
    /// A password or token in it, which would be in the lock, in arguments and in logs.
    #[error("`{shown}` holds a password: a reference is no place for one")]
    Password {
        /// Without the password.
        shown: String,
    },
    /// Characters that no reference has.
    #[error("`{given}` holds a control character or white space")]
    Control {
        /// As given, made printable.
        given: String,
    },
}

impl Diagnose for SourceError {
    fn kind(&self) -> Kind {
        match self {
            SourceError::NoFolder { .. } => Kind::NotFound,
            _ => Kind::Usage,
        }
    }
    fn hints(&self) -> Vec<String> {
        match self {
            SourceError::Unknown { given } => {
                let mut hints = vec![format!("for a folder, write `./{given}`")];
                let parts: Vec<&str> = given.split('/').collect();
                if parts.len() == 2 && parts.iter().all(|p| !p.is_empty()) {
                    hints.push(format!(
                        "for a repository of a forge, write `github:{given}` or `gitlab:{given}`"
                    ));
                } else if !given.contains('/') {
                    hints.push(format!("for an entry of Nix's flake registry, write `flake:{given}`"));
                }
                hints.push(
                    "for any git repository, write its address, such as `https://example.org/team/repo`"
                        .into(),
                );
                hints
            }
            SourceError::Password { .. } => vec![
                "leave it out, and name it with `--auth-from env:VARIABLE`, `file:PATH`, `netrc` or `git`"
                    .into(),
            ],
            _ => Vec::new(),
        }
    }
}

impl Source {
    /// Parses a SOURCE argument. `cwd` makes relative paths absolute, `home` stands for `~`.
    pub fn parse(given: &str, cwd: &Path, home: &Path, look: &dyn Look) -> Result<Source, SourceError> {
        if given.is_empty() || given.chars().any(char::is_control) {
            return Err(SourceError::Control { given: text::printable_line(given) });
        }
        let (reference, attr) = match given.split_once('#') {
            Some((r, a)) => (r, Some(a.parse()?)),
            None => (given, None),
        };
        if is_path(reference) {
            return folder_source(reference, attr, cwd, home, look);
        }
        if let Some(shown) = without_password(reference) {
            return Err(SourceError::Password { shown });
        }
        if reference.chars().any(char::is_whitespace) {
            if look.folder(&absolute(reference, cwd, home)).is_some() {
                return folder_source(reference, attr, cwd, home, look);
            }
            return Err(SourceError::Control { given: given.into() });
        }
        let url = match reference.split_once(':') {
            Some(("http" | "https", _)) if is_archive(reference) => reference.into(),
            Some(("http" | "https", _)) => git_over_http(reference),
            Some(("ssh", _)) => format!("git+{reference}"),
            Some(("file", rest)) if !is_archive(rest) => format!("git+{reference}"),
            Some((scheme, rest)) if is_scheme(scheme) && !rest.is_empty() => {
                if let Some(path) = reference.strip_prefix("path:") {
                    let folder = absolute(path.split('?').next().unwrap_or(path), cwd, home);
                    if look.folder(&folder).is_none() {
                        return Err(SourceError::NoFolder { path: folder });
                    }
                    let query = path.split_once('?').map(|(_, q)| format!("?{q}")).unwrap_or_default();
                    return Ok(Source {
                        url: format!("path:{}{query}", encode_path(&folder)),
                        attr,
                        folder: Some(folder),
                    });
                }
                reference.into()
            }
            // git@host:team/repo, as git itself writes it.
            Some((user_host, path))
                if user_host.contains('@') && !path.is_empty() && !path.starts_with('/') =>
            {
                format!("git+ssh://{user_host}/{path}")
            }
            _ => {
                if look.folder(&absolute(reference, cwd, home)).is_some() {
                    return folder_source(reference, attr, cwd, home, look);
                }
                return Err(SourceError::Unknown { given: reference.into() });
            }
        };
        let folder = url
            .strip_prefix("git+file://")
            .map(|p| PathBuf::from(decode(p.split('?').next().unwrap_or(p))))
            .filter(|p| p.is_absolute());
        if let Some(path) = &folder
            && look.folder(path).is_none()
        {
            return Err(SourceError::NoFolder { path: path.clone() });
        }
        Ok(Source { url, attr, folder })
    }

    /// Pins it to a branch, tag or commit.
    pub fn pinned(mut self, pin: &Pin) -> Result<Source, SourceError> {
        let repository = ["git+", "git:", "github:", "gitlab:", "sourcehut:", "hg+"]
            .iter()
            .any(|p| self.url.starts_with(p));
        if !repository {
            return Err(SourceError::NotARepository { url: self.url });
        }
        if self.url.contains("?ref=") || self.url.contains("&ref=") || self.url.contains("rev=") {
            return Err(SourceError::Pinned { url: self.url });
        }
        let (key, value) = match pin {
            Pin::Branch(b) => ("ref", encode(b)),
            Pin::Tag(t) if self.url.starts_with("git") && self.url.contains("://") => {
                ("ref", format!("refs/tags/{}", encode(t)))
            }
            Pin::Tag(t) => ("ref", encode(t)),
            Pin::Commit(c) if is_commit(c) => ("rev", c.to_lowercase()),
            Pin::Commit(c) => return Err(SourceError::Commit { given: c.clone() }),
        };
        let separator = if self.url.contains('?') { '&' } else { '?' };
        self.url = format!("{}{separator}{key}={value}", self.url);
        Ok(self)
    }

    /// The reference without a branch, tag or commit.
    pub fn unpinned(url: &str) -> String {
        let (plain, query) = url.split_once('?').unwrap_or((url, ""));
        let mut plain = plain.to_owned();
        if let Some((scheme @ ("github" | "gitlab" | "sourcehut"), rest)) = plain.split_once(':') {
            plain = format!("{scheme}:{}", rest.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"));
        }
        let pins = ["ref=", "rev=", "narHash=", "lastModified=", "revCount="];
        let kept: Vec<&str> =
            query.split('&').filter(|q| !q.is_empty() && !pins.iter().any(|p| q.starts_with(p))).collect();
        if kept.is_empty() { plain } else { format!("{plain}?{}", kept.join("&")) }
    }

    /// Whether it follows a folder of this host, so that a rebuild takes what is there now.
    pub fn is_local(url: &str) -> bool {
        (url.starts_with("path:") || url.starts_with("git+file:")) && !url.contains("rev=")
    }

    /// The repository that it is of; none where it is no repository of git.
    pub fn repository(&self) -> Option<Repository> {
        let (plain, query) = self.url.split_once('?').unwrap_or((&self.url, ""));
        let asked = |key: &str| {
            let mut all = query.split('&').filter_map(|q| q.split_once('='));
            all.find_map(|(k, value)| (k == key).then(|| decode(value)))
        };
        let forge = |host: &str, rest: &str| {
            let mut parts = rest.splitn(3, '/').map(decode);
            let (owner, name) = (parts.next()?, parts.next()?);
            let host = asked("host").unwrap_or_else(|| host.into());
            Some((format!("https://{host}/{owner}/{name}"), parts.next()))
        };
        let (url, part) = match plain.split_once(':')? {
            ("github", rest) => forge("github.com", rest)?,
            ("gitlab", rest) => forge("gitlab.com", rest)?,
            ("sourcehut", rest) => forge("git.sr.ht", rest)?,
            (scheme, _) if scheme.starts_with("git+") => (plain["git+".len()..].to_owned(), None),
            ("git", _) => (plain.to_owned(), None),
            _ => return None,
        };
        let (commit, reference) = match part {
            Some(part) if is_commit(&part) => (Some(part), None),
            part => (None, part),
        };
        let short = |r: String| {
            ["refs/tags/", "refs/heads/"]
                .iter()
                .find_map(|p| r.strip_prefix(p).map(str::to_owned))
                .unwrap_or(r)
        };
        Some(Repository {
            url,
            reference: asked("ref").or(reference).map(short),
            commit: asked("rev").or(commit).map(|c| c.to_lowercase()),
        })
    }

    /// A name for it as an input of a machine flake.
    pub fn input_name(&self) -> InputName {
        let plain = self.url.split(['?', '#']).next().unwrap_or_default();
        let dir = self.url.split(['?', '&']).find_map(|p| p.strip_prefix("dir="));
        let path =
            dir.filter(|d| !d.is_empty()).unwrap_or_else(|| plain.split_once(':').map_or(plain, |(_, p)| p));
        let mut parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        // github:owner/repo/ref
        if ["github:", "gitlab:", "sourcehut:"].iter().any(|s| plain.starts_with(s))
            && dir.is_none()
            && parts.len() > 2
        {
            parts.truncate(2);
        }
        let last = decode(parts.last().copied().unwrap_or_default());
        let last = ARCHIVES.iter().find_map(|e| last.strip_suffix(e)).unwrap_or(&last);
        let last = last.trim_end_matches(".git").to_lowercase();
        let cleaned: String = last
            .chars()
            .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
            .collect();
        let cleaned = cleaned.trim_start_matches(|c: char| !c.is_ascii_lowercase());
        let cleaned: String = cleaned.chars().take(56).collect();
        let cleaned = cleaned.trim_end_matches('-');
        cleaned
            .parse()
            .or_else(|_| format!("{cleaned}-module").parse())
            .or_else(|_| "module".parse())
            .unwrap_or_else(|_| unreachable!("`module` is an input name"))
    }
}

/// A reference without its password; none where it has none.
fn without_password(reference: &str) -> Option<String> {
    let (scheme, rest) = reference.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (person, host) = rest[..end].rsplit_once('@')?;
    let (login, password) = person.split_once(':')?;
    (!password.is_empty()).then(|| format!("{scheme}://{login}@{host}{}", &rest[end..]))
}

fn is_commit(s: &str) -> bool {
    s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_path(s: &str) -> bool {
    s.is_empty()
        || s == "."
        || s == ".."
        || s == "~"
        || ["/", "./", "../", "~/"].iter().any(|p| s.starts_with(p))
}

/// How the names of archives end.
const ARCHIVES: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip"];

fn is_archive(s: &str) -> bool {
    let path = s.split('?').next().unwrap_or(s);
    ARCHIVES.iter().any(|e| path.ends_with(e))
}

fn is_scheme(s: &str) -> bool {
    const SCHEMES: [&str; 8] = ["git", "github", "gitlab", "sourcehut", "path", "flake", "hg", "tarball"];
    let (head, transport) = s.split_once('+').unwrap_or((s, "https"));
    (SCHEMES.contains(&head) || head == "file" && s.contains('+'))
        && ["https", "http", "ssh", "file", "git"].contains(&transport)
}

fn absolute(path: &str, cwd: &Path, home: &Path) -> PathBuf {
    let path = match path.strip_prefix('~') {
        Some("") => home.into(),
        Some(rest) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => cwd.join(path),
    };
    let mut out = PathBuf::new();
    for c in path.components() {
        match c {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

fn folder_source(
    given: &str,
    attr: Option<AttrPath>,
    cwd: &Path,
    home: &Path,
    look: &dyn Look,
) -> Result<Source, SourceError> {
    let (path, query) = given.split_once('?').unwrap_or((given, ""));
    let path = absolute(path, cwd, home);
    let folder = look.folder(&path).ok_or(SourceError::NoFolder { path })?;
    let mut query: Vec<String> = query.split('&').filter(|q| !q.is_empty()).map(Into::into).collect();
    let url = match look.git_root(&folder) {
        // Of a repository only what git tracks goes into the world-readable store.
        Some(root) => {
            if let Ok(below) = folder.strip_prefix(&root)
                && !below.as_os_str().is_empty()
            {
                query.insert(0, format!("dir={}", encode_path(below)));
            }
            format!("git+file://{}", encode_path(&root))
        }
        None => format!("path:{}", encode_path(&folder)),
    };
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    Ok(Source { url: format!("{url}{query}"), attr, folder: Some(folder) })
}

/// `https://` of a repository; a forge's page of a branch and folder becomes both.
fn git_over_http(url: &str) -> String {
    let (plain, query) = url.split_once('?').unwrap_or((url, ""));
    let plain = plain.trim_end_matches('/');
    let mut query: Vec<String> = query.split('&').filter(|q| !q.is_empty()).map(Into::into).collect();
    let mut repository = plain;
    for marker in ["/-/tree/", "/tree/", "/src/branch/"] {
        if let Some((repo, rest)) = plain.split_once(marker) {
            repository = repo;
            let (branch, dir) = rest.split_once('/').unwrap_or((rest, ""));
            if !dir.is_empty() {
                query.insert(0, format!("dir={dir}"));
            }
            query.insert(0, format!("ref={branch}"));
            break;
        }
    }
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    format!("git+{repository}{query}")
}

/// Percent-encodes what has a meaning in a URL; `/` stays.
fn encode(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~/+@:".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

fn encode_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut out = String::new();
    for b in path.as_os_str().as_bytes() {
        if b.is_ascii_alphanumeric() || b"-._~/".contains(b) {
            out.push(*b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The flake reference of a folder as it is, whatever characters its name has.
pub fn path_reference(folder: &Path) -> String {
    format!("path:{}", encode_path(folder))
}

/// Undoes percent-encoding; what is not valid stays as it is.
pub fn decode(s: &str) -> String {
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let hex = (b[i] == b'%').then(|| b.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(v) => {
                out.push(v);
                i += 3;
            }
            None => {
                out.push(b[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk;
    impl Look for Disk {
        fn folder(&self, path: &Path) -> Option<PathBuf> {
            ["/home/me/plain", "/home/me/repo", "/home/me/repo/sub dir", "/home/me/plain/x y"]
                .iter()
                .map(Path::new)
                .find(|p| *p == path)
                .map(Into::into)
        }
        fn git_root(&self, folder: &Path) -> Option<PathBuf> {
            folder.starts_with("/home/me/repo").then(|| "/home/me/repo".into())
        }
    }

    fn parse(s: &str) -> Result<Source, SourceError> {
        Source::parse(s, Path::new("/home/me"), Path::new("/home/me"), &Disk)
    }

    #[test]
    fn every_form_becomes_the_reference_nix_understands() {
        for (given, url) in [
            ("./plain", "path:/home/me/plain"),
            ("plain", "path:/home/me/plain"),
            ("~/plain", "path:/home/me/plain"),
            ("plain/../repo", "git+file:///home/me/repo"),
            ("./repo/sub dir", "git+file:///home/me/repo?dir=sub%20dir"),
            ("path:./plain", "path:/home/me/plain"),
            ("./plain/x y", "path:/home/me/plain/x%20y"),
            ("https://example.org/team/repo", "git+https://example.org/team/repo"),
            ("https://example.org/team/repo.git?ref=x", "git+https://example.org/team/repo.git?ref=x"),
            ("https://github.com/o/r/tree/main/sub/dir", "git+https://github.com/o/r?ref=main&dir=sub/dir"),
            ("https://example.org/x.tar.gz", "https://example.org/x.tar.gz"),
            ("git@example.org:team/repo.git", "git+ssh://git@example.org/team/repo.git"),
            ("ssh://git@example.org/team/repo", "git+ssh://git@example.org/team/repo"),
            ("git+file:///home/me/repo", "git+file:///home/me/repo"),
            ("file:///home/me/repo", "git+file:///home/me/repo"),
            ("github:o/r", "github:o/r"),
            ("flake:thing", "flake:thing"),
        ] {
            assert_eq!(parse(given).map(|s| s.url), Ok(url.into()), "{given}");
        }
    }

    #[test]
    fn the_attribute_follows_the_hash() {
        let s = parse("github:o/r#nixosModules.dev").unwrap();
        assert_eq!(s.url, "github:o/r");
        assert_eq!(s.attr.unwrap().names(), ["nixosModules", "dev"]);
    }

    #[test]
    fn what_is_no_source_is_refused_with_the_way_out() {
        assert!(matches!(parse("./nowhere"), Err(SourceError::NoFolder { .. })));
        assert!(matches!(parse("git+file:///nowhere"), Err(SourceError::NoFolder { .. })));
        let e = parse("team/repo").unwrap_err();
        assert!(matches!(e, SourceError::Unknown { .. }));
        assert!(e.hints().iter().any(|h| h.contains("github:team/repo")));
        for bad in ["", "a\u{1b}b", "github:o/r#", "svn+https://x", "a b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_reference_is_refused_without_being_shown() {
        for given in ["https://me:secret@h/r.git", "git+https://me:secret@h/r?ref=x", "https://me:se@cret@h"]
        {
            let e = parse(given).unwrap_err();
            assert!(matches!(e, SourceError::Password { .. }), "{given}");
            assert!(!format!("{e} {:?}", e.hints()).contains("cret"), "{e}");
        }
        for fine in ["https://me@h/r.git", "git+ssh://git@h:22/r", "github:o/r", "https://h/a:b@c"] {
            assert!(parse(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn pins_are_recorded_and_only_repositories_can_be_pinned() {
        let pin = |s: &str, p: Pin| parse(s).unwrap().pinned(&p).map(|s| s.url);
        assert_eq!(
            pin("https://e.org/r", Pin::Tag("v1".into())),
            Ok("git+https://e.org/r?ref=refs/tags/v1".into())
        );
        assert_eq!(pin("github:o/r", Pin::Branch("x/y".into())), Ok("github:o/r?ref=x/y".into()));
        let c = "a".repeat(40);
        assert_eq!(pin("./repo", Pin::Commit(c.clone())), Ok(format!("git+file:///home/me/repo?rev={c}")));
        assert!(matches!(pin("./plain", Pin::Branch("x".into())), Err(SourceError::NotARepository { .. })));
        assert!(matches!(pin("./repo", Pin::Commit("abc".into())), Err(SourceError::Commit { .. })));
        assert!(matches!(
            pin("https://e.org/r?ref=a", Pin::Branch("b".into())),
            Err(SourceError::Pinned { .. })
        ));
    }

    #[test]
    fn repositories_are_named_as_git_names_them() {
        let of = |url: &str| {
            let source = Source { url: url.into(), attr: None, folder: None };
            source.repository().map(|r| {
                let [reference, commit] = [r.reference, r.commit].map(|part| part.unwrap_or_default());
                format!("{} {reference} {commit}", r.url)
            })
        };
        let c = "0123456789abcdef0123456789abcdef01234567";
        for (url, expected) in [
            ("git+https://e.org/r.git?ref=refs/tags/v1&dir=x", "https://e.org/r.git v1"),
            ("git+ssh://git@e.org/r", "ssh://git@e.org/r"),
            ("git+file:///home/me/a%20b", "file:///home/me/a%20b"),
            ("git://e.org/r?ref=main", "git://e.org/r main"),
            ("github:o/r/x%2Fy", "https://github.com/o/r x/y"),
            ("gitlab:o/r?ref=main", "https://gitlab.com/o/r main"),
            ("github:o/r/v1?host=git.e.org", "https://git.e.org/o/r v1"),
            ("sourcehut:~o/r", "https://git.sr.ht/~o/r"),
        ] {
            assert_eq!(of(url).as_deref().map(str::trim_end), Some(expected), "{url}");
        }
        for (url, expected) in [
            (format!("github:o/r/{c}"), format!("https://github.com/o/r  {c}")),
            (format!("github:o/r?rev={c}"), format!("https://github.com/o/r  {c}")),
            (format!("git+https://e.org/r?rev={c}&ref=main"), format!("https://e.org/r main {c}")),
            (
                format!("gitlab:g%2Fs/r/{}?host=git.e.org", c.to_uppercase()),
                format!("https://git.e.org/g/s/r  {c}"),
            ),
        ] {
            assert_eq!(of(&url), Some(expected), "{url}");
        }
        for url in ["path:/home/me/r", "https://e.org/r.tar.gz", "github:o"] {
            assert_eq!(of(url), None, "{url}");
        }
    }

    #[test]
    fn without_its_pin_a_reference_keeps_the_rest() {
        for (given, wanted) in [
            ("git+https://h/r?ref=x&dir=a/b&rev=0", "git+https://h/r?dir=a/b"),
            ("github:o/r/branch?dir=a", "github:o/r?dir=a"),
            ("git+ssh://git@h/r", "git+ssh://git@h/r"),
        ] {
            assert_eq!(Source::unpinned(given), wanted);
        }
    }

    #[test]
    fn inputs_are_named_after_the_repository() {
        for (given, name) in [
            ("github:o/My.Repo", "my-repo"),
            ("github:o/r/branch", "r"),
            ("https://e.org/team/repo.git", "repo"),
            ("./repo/sub dir", "sub-dir"),
            ("https://e.org/team/env.tar.gz", "env"),
            ("https://e.org/nixpkgs", "nixpkgs-module"),
            ("https://e.org/123", "module"),
        ] {
            assert_eq!(parse(given).unwrap().input_name().as_str(), name, "{given}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_source_or_an_error_and_a_source_always_has_an_input_name(s in ".*") {
            if let Ok(source) = parse(&s) {
                let _ = source.input_name();
            }
        }

        #[test]
        fn encoding_a_path_loses_nothing(s in "[^\\x00]*") {
            assert_eq!(decode(&encode_path(Path::new(&s))), s);
        }
    }
}
