//! `--auth-from`: credentials of private sources for one call.
//!
//! They go to git and Nix in files that only the caller reads and that are gone after the call: never in a URL, a lock, an
//! argument, a log or the store.

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};

use codchi_core::credentials::{self, AuthFrom, Credentials, Origin, Server};
use codchi_core::report::Kind;
use codchi_core::text;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::make::Scratch;

/// Credentials in place, for as long as this is kept.
pub struct Auth {
    scratch: Scratch,
    servers: Vec<String>,
    variables: Vec<String>,
}

impl Auth {
    /// Finds the credentials that `--auth-from` names, for the servers of these references.
    pub fn find(app: &App, given: &[String], urls: &[String]) -> Result<Option<Auth>> {
        if given.is_empty() {
            return Ok(None);
        }
        let mut servers: Vec<Server> = urls.iter().filter_map(|u| credentials::server(u)).collect();
        servers.sort();
        servers.dedup();
        let (mut found, mut variables) = (Vec::new(), Vec::new());
        for text in given {
            let from: AuthFrom = text.parse().map_err(usage)?;
            if let Origin::Env(name) = &from.origin {
                variables.push(name.clone());
            }
            let before = found.len();
            let meant = meant(&from, &servers)?;
            for server in &meant {
                found.extend(one(app, &from.origin, server)?.map(|c| (server.clone(), c)));
            }
            if found.len() == before {
                let hosts: Vec<&str> = meant.iter().map(|s| s.host.as_str()).collect();
                return Err(Failure::failed(format!(
                    "`--auth-from {text}`: there are no credentials for `{}`",
                    hosts.join("`, `")
                )));
            }
        }
        let scratch = Scratch::below(&app.dirs.data.join("auth"), "auth")?;
        let files = credentials::files(&found);
        let netrc = scratch.path().join("netrc");
        let config = format!("{}netrc-file = {}\n{}", own_config(app), netrc.display(), files.tokens);
        for (name, text) in [("netrc", files.netrc), ("git", files.git), ("nix.conf", config)] {
            codchi_fs::write_atomic(scratch.path().join(name), text, 0o600)?;
        }
        Ok(Some(Auth { scratch, servers: found.into_iter().map(|(s, _)| s.host).collect(), variables }))
    }

    /// What points git and Nix at them.
    pub fn environment(&self) -> Vec<(OsString, Option<OsString>)> {
        let file = |name: &str| self.scratch.path().join(name).into_os_string();
        let mut all: Vec<(OsString, Option<OsString>)> =
            vec![("NIX_USER_CONF_FILES".into(), Some(file("nix.conf")))];
        let there = std::env::var("GIT_CONFIG_COUNT").ok().and_then(|n| n.parse().ok()).unwrap_or(0usize);
        let mut settings = Vec::new();
        for host in &self.servers {
            let key = format!("credential.https://{host}.helper");
            // The first forgets the helpers that the person has: what they say now counts.
            settings.push((key.clone(), OsString::new()));
            let mut helper = OsString::from("store --file=");
            helper.push(quoted(&self.scratch.path().join("git").to_string_lossy()));
            settings.push((key, helper));
        }
        for (i, (key, value)) in settings.iter().enumerate() {
            let n = there + i;
            all.push((format!("GIT_CONFIG_KEY_{n}").into(), Some(key.into())));
            all.push((format!("GIT_CONFIG_VALUE_{n}").into(), Some(value.clone())));
        }
        all.push(("GIT_CONFIG_COUNT".into(), Some((there + settings.len()).to_string().into())));
        all.extend(self.variables.iter().map(|n| (n.into(), None)));
        all
    }
}

/// For the shell in which git runs a helper.
fn quoted(s: &str) -> String {
    format!("'{}'", s.replace('\'', r"'\''"))
}

/// The person's own nix.conf, which a file of ours would otherwise replace.
fn own_config(app: &App) -> String {
    let own = match std::env::var("NIX_USER_CONF_FILES") {
        // The first counts most, and in one file the last line does.
        Ok(files) => files.split(':').rev().map(Into::into).collect(),
        Err(_) => app.dirs.config.parent().map(|d| d.join("nix/nix.conf")).into_iter().collect::<Vec<_>>(),
    };
    own.iter().map(|f| format!("!include {}\n", f.display())).collect()
}

fn usage(e: credentials::AuthFromError) -> Failure {
    Failure::usage(format!("`--auth-from`: {e}"))
        .hint("it is `git` (what git remembers), `netrc` or `netrc:FILE`, `env:VARIABLE` or `file:PATH`")
        .hint("of one host among several: `HOST=file:PATH`")
}

/// The servers that a word of the person means.
fn meant(from: &AuthFrom, servers: &[Server]) -> Result<Vec<Server>> {
    let names = || servers.iter().map(|s| format!("`{}`", s.host)).collect::<Vec<_>>().join(", ");
    if let Some(host) = &from.host {
        let of_host = |s: &&Server| s.host == *host || s.host.split(':').next() == Some(host);
        let all: Vec<Server> = servers.iter().filter(of_host).cloned().collect();
        return match all.as_slice() {
            // A source of a source may be there.
            [] => Ok(vec![Server { host: host.clone(), login: None, gitlab: false }]),
            _ => Ok(all),
        };
    }
    match (&from.origin, servers) {
        (_, []) => Err(Failure::usage("`--auth-from` is for sources over https, and there is none")
            .hint("over ssh, keys are ssh's own: an agent, or a key without a passphrase")),
        (Origin::Env(_) | Origin::File(_), [_, _, ..]) => Err(Failure::usage(format!(
            "`--auth-from` names one secret, and there are several hosts: {}",
            names()
        ))
        .hint("say whose it is: `--auth-from HOST=env:VARIABLE`")),
        (_, all) => Ok(all.to_vec()),
    }
}

fn one(app: &App, origin: &Origin, server: &Server) -> Result<Option<Credentials>> {
    let login = server.login.as_deref();
    match origin {
        Origin::Env(name) => {
            let text = std::env::var(name).map_err(|_| {
                Failure::new(Kind::Declined, format!("there is no variable `{}`", text::printable_line(name)))
                    .hint("`export NAME=TOKEN` sets one for the commands that follow")
            })?;
            Credentials::parse(&text, login).map(Some).ok_or_else(|| {
                Failure::failed(format!("`{}` holds no token", text::printable_line(name)))
                    .hint("it is `TOKEN` or `LOGIN:PASSWORD`, in one line")
            })
        }
        Origin::File(path) => {
            let text = codchi_fs::read_to_string(path)?;
            Credentials::parse(&text, login).map(Some).ok_or_else(|| {
                Failure::failed(format!("`{}` holds no token", app.shown(path)))
                    .hint("it is `TOKEN` or `LOGIN:PASSWORD`, in one line")
            })
        }
        Origin::Netrc(path) => {
            let file = path.clone().unwrap_or_else(|| app.dirs.home.join(".netrc"));
            Ok(Credentials::of_netrc(&codchi_fs::read_to_string(file)?, &server.host))
        }
        Origin::Git => ask_git(app, server),
    }
}

/// Asks git's credential helpers; nobody is asked at a terminal.
fn ask_git(app: &App, server: &Server) -> Result<Option<Credentials>> {
    let mut c = Command::new("git");
    // In no repository, whose configuration could name a helper.
    c.args(["credential", "fill"]).current_dir(&app.dirs.home).env("GIT_TERMINAL_PROMPT", "0");
    c.env("GIT_CEILING_DIRECTORIES", app.dirs.home.parent().unwrap_or(&app.dirs.home));
    if std::env::var_os("GIT_ASKPASS").is_none() {
        c.env("GIT_ASKPASS", "").env("SSH_ASKPASS", "");
    }
    let mut child = c
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Failure::without_git)?;
    let login = server.login.as_ref().map(|l| format!("username={l}\n")).unwrap_or_default();
    if let Some(mut stdin) = child.stdin.take() {
        let _ = write!(stdin, "protocol=https\nhost={}\n{login}\n", server.host);
    }
    let out = child.wait_with_output().map_err(Failure::without_git)?;
    Ok(Credentials::of_git(&String::from_utf8_lossy(&out.stdout)).filter(|_| out.status.success()))
}
