//! Whether there is an engine that this caller can use, and what mends it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use codchi_core::dirs::Dirs;
use codchi_core::status::{Finding, Level};
use serde_json::Value;

use super::api::{Api, ApiError};

/// Where distributions have the daemon's socket.
const SOCKETS: [&str; 2] = ["/run/incus/unix.socket", "/var/lib/incus/unix.socket"];
/// Who may use the socket.
const GROUP: &str = "incus-admin";
/// The oldest version that starts machines as they are described: idmapped disks, empty instances.
const OLDEST: (u64, u64) = (6, 0);

/// The engine's socket: as the `incus` command finds it.
pub fn socket() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(socket) = var("INCUS_SOCKET") {
        return socket;
    }
    if let Some(dir) = var("INCUS_DIR") {
        return dir.join("unix.socket");
    }
    let there = SOCKETS.iter().map(Path::new).find(|p| p.exists());
    there.unwrap_or(Path::new(SOCKETS[1])).into()
}

/// Why nobody answers, and what mends it.
pub fn unreachable(e: &ApiError) -> (String, Vec<String>) {
    let ApiError::Connect { socket, source } = e else { return (e.to_string(), Vec::new()) };
    let socket = socket.display();
    match source.kind() {
        ErrorKind::PermissionDenied => (
            format!("you may not use the Incus daemon at `{socket}`"),
            vec![
                format!(
                    "become a member of its group with `sudo usermod -aG {GROUP} $USER`, then log in again"
                ),
                "members of that group can become root on this computer".into(),
            ],
        ),
        _ if installed().is_none() && source.kind() == ErrorKind::NotFound => (
            "Incus is not installed".into(),
            vec![
                "Debian 12: `apt install -t bookworm-backports incus`; later releases: `apt install incus`"
                    .into(),
            ],
        ),
        _ => (
            format!("the Incus daemon does not run: nobody answers at `{socket}`"),
            vec!["`systemctl start incus` starts it".into()],
        ),
    }
}

fn installed() -> Option<&'static str> {
    [
        "/usr/libexec/incus/incusd",
        "/usr/bin/incusd",
        "/usr/sbin/incusd",
        "/opt/incus/bin/incusd",
        "/usr/bin/incus",
    ]
    .into_iter()
    .find(|p| Path::new(p).exists())
}

/// Whether the engine answers, trusts the caller and is recent enough; else what is wrong and what mends it.
pub fn usable(api: &Api) -> Result<(), (String, Vec<String>)> {
    examine(api).map(drop)
}

fn examine(api: &Api) -> Result<Value, (String, Vec<String>)> {
    let server = api.get("/1.0").map_err(|e| unreachable(&e))?;
    if server["auth"] != "trusted" {
        return Err((
            "the Incus daemon does not trust you".into(),
            vec![format!("become a member of the group `{GROUP}`")],
        ));
    }
    let version = server["environment"]["server_version"].as_str().unwrap_or_default();
    if parse(version).is_none_or(|v| v < OLDEST) {
        return Err((
            format!("Incus {version} is too old: {}.{} or later is needed", OLDEST.0, OLDEST.1),
            vec!["Debian 12 has a newer one in bookworm-backports".into()],
        ));
    }
    Ok(server)
}

fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// What doctor says. An engine that is not installed is nothing that is wrong.
pub fn probe(dirs: &Dirs) -> Vec<Finding> {
    let finding =
        |level, detail: String, fix: Option<String>| Finding { what: "Incus".into(), level, detail, fix };
    let api = Api::at(&socket());
    let server = match examine(&api) {
        Ok(server) => server,
        Err((what, hints)) => return vec![finding(Level::Missing, what, hints.first().cloned())],
    };
    let version = server["environment"]["server_version"].as_str().unwrap_or_default().to_string();
    let mut findings =
        vec![finding(Level::Good, format!("{version}, at `{}`", api.socket().display()), None)];
    if !dirs.is_root() {
        findings.push(Finding {
            what: "Incus without root".into(),
            level: Level::Degraded,
            detail: "machines have no network of their own yet".into(),
            fix: Some("run `codchi` as root for machines on Incus, or use another driver".into()),
        });
    }
    if server["environment"]["kernel_features"]["idmapped_mounts"] != "true" {
        findings.push(Finding {
            what: "Incus: idmapped mounts".into(),
            level: Level::Missing,
            detail: "the kernel cannot show the store with the machine's own root as owner".into(),
            fix: Some("Linux 5.12 or later has them".into()),
        });
    }
    let pools = api.get("/1.0/storage-pools").ok().and_then(|p| p.as_array().map(Vec::len)).unwrap_or(0);
    if pools == 0 {
        findings.push(Finding {
            what: "Incus: storage pool".into(),
            level: Level::Missing,
            detail: "there is none".into(),
            fix: Some("`incus storage create default dir`".into()),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(parse("6.0.4").unwrap() >= OLDEST);
        assert!(parse("6.10").unwrap() > parse("6.9").unwrap());
        assert!(parse("0.7").unwrap() < OLDEST);
        assert_eq!(parse("six"), None);
    }
}
