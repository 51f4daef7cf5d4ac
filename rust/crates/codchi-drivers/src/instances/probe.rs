//! Whether there is an engine that this caller can use, and what mends it.

use std::io::ErrorKind;
use std::path::Path;

use codchi_core::dirs::Dirs;
use codchi_core::status::{Finding, Level};
use serde_json::Value;

use super::api::{Api, ApiError};
use super::dialect::Dialect;
use super::member;
use super::site::Site;

/// Why nobody answers, and what mends it.
pub fn unreachable(dialect: &Dialect, e: &ApiError) -> (String, Vec<String>) {
    let ApiError::Connect { site, source } = e else {
        let (variable, _) = dialect.variables;
        let named = variable.map(|v| format!("`{v}` names the socket of {}", dialect.title));
        return (e.to_string(), named.into_iter().collect());
    };
    let (title, group) = (dialect.title, dialect.group);
    if let Site::Remote(_) = **site {
        if source.kind() == ErrorKind::NotConnected {
            return (
                format!("who answers at {site} is not who was accepted there: {source}"),
                vec![format!(
                    "if you know why, `{0} remote remove` and `{0} remote add` accept its new certificate",
                    dialect.client
                )],
            );
        }
        return (
            format!("{title} cannot be reached at {site}: {source}"),
            vec![format!("`{} remote list` shows where it is looked for", dialect.client)],
        );
    }
    match source.kind() {
        ErrorKind::PermissionDenied => (
            format!("you may not use the {title} daemon at {site}"),
            vec![
                format!(
                    "become a member of its group with `sudo usermod -aG {group} $USER`, then log in again"
                ),
                "members of that group can become root on this computer".into(),
            ],
        ),
        _ if !is_installed(dialect) && source.kind() == ErrorKind::NotFound => {
            (format!("{title} is not installed"), vec![dialect.install.into()])
        }
        _ => (
            format!("the {title} daemon does not run: nobody answers at {site}"),
            vec![format!("`{}` starts it", dialect.start)],
        ),
    }
}

fn is_installed(dialect: &Dialect) -> bool {
    dialect.programs.iter().any(|p| Path::new(p).exists())
}

/// Whether the engine answers, trusts the caller and is recent enough; else what is wrong and what mends it.
pub fn usable(api: &Api) -> Result<(), (String, Vec<String>)> {
    examine(api).map(drop)
}

fn examine(api: &Api) -> Result<Value, (String, Vec<String>)> {
    let dialect = api.dialect();
    let server = api.get("/1.0").map_err(|e| unreachable(dialect, &e))?;
    if server["auth"] != "trusted" {
        return Err(match api.site() {
            Site::Socket(_) => (
                format!("the {} daemon does not trust you", dialect.title),
                vec![format!("become a member of the group `{}`", dialect.group)],
            ),
            site @ Site::Remote(_) => (
                format!("{} does not trust your certificate at {site}", dialect.title),
                vec![format!(
                    "`{} config trust add NAME` there gives a token for `{0} remote add`",
                    dialect.client
                )],
            ),
        });
    }
    let version = server["environment"]["server_version"].as_str().unwrap_or_default();
    if parse(version).is_none_or(|v| v < dialect.oldest) {
        let (major, minor) = dialect.oldest;
        return Err((
            format!("{} {version} is too old: {major}.{minor} or later is needed", dialect.title),
            vec![dialect.install.into()],
        ));
    }
    Ok(server)
}

fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// What doctor says of an engine on another host that machines are on.
pub fn remote(dialect: &Dialect, name: &str, reached: crate::Result<Api>) -> Finding {
    let what = format!("{} on `{name}`", dialect.title);
    match reached {
        Ok(api) => {
            Finding { what, level: Level::Good, detail: format!("it answers at {}", api.site()), fix: None }
        }
        Err(e) => Finding {
            what,
            level: Level::Missing,
            detail: e.to_string(),
            fix: codchi_core::report::Diagnose::hints(&e).into_iter().next(),
        },
    }
}

/// What doctor says. An engine that is not installed is nothing that is wrong.
pub fn probe(api: &Api, dirs: &Dirs) -> Vec<Finding> {
    let dialect = api.dialect();
    let finding = |what: &str, level, detail: String, fix: Option<String>| Finding {
        what: format!("{}{what}", dialect.title),
        level,
        detail,
        fix,
    };
    let server = match examine(api) {
        Ok(server) => server,
        Err((what, hints)) => return vec![finding("", Level::Missing, what, hints.into_iter().next())],
    };
    let version = server["environment"]["server_version"].as_str().unwrap_or_default();
    let of =
        member::named(&server).map_or_else(String::new, |name| format!(", the member `{name}` of a cluster"));
    let mut findings = vec![finding("", Level::Good, format!("{version}, at {}{of}", api.site()), None)];
    if !dirs.is_root() {
        findings.push(finding(
            " without root",
            Level::Missing,
            "its machines can only be given their network and folders by root".into(),
            Some("run `codchi` as root for machines of this engine, or use another driver".into()),
        ));
    }
    if dialect.shifts && server["environment"]["kernel_features"]["idmapped_mounts"] != "true" {
        findings.push(finding(
            ": idmapped mounts",
            Level::Missing,
            "the kernel cannot show the store with the machine's own root as owner".into(),
            Some("Linux 5.12 or later has them".into()),
        ));
    }
    let pools = api.get("/1.0/storage-pools").ok().and_then(|p| p.as_array().map(Vec::len)).unwrap_or(0);
    if pools == 0 {
        findings.push(finding(
            ": storage pool",
            Level::Missing,
            "there is none".into(),
            Some(format!("`{} storage create default dir`", dialect.client)),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(parse("6.0.4").unwrap() >= (6, 0));
        assert!(parse("6.10").unwrap() > parse("6.9").unwrap());
        assert!(parse("0.7").unwrap() < (6, 0));
        assert_eq!(parse("six"), None);
    }
}
