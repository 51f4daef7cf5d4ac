//! What holds after whatever happened: every machine is whole or gone, and nothing belongs to one that is gone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::Value;

use crate::host::{Host, run};

/// The machines' own folders, where each machine has entries by its name: below the home, and what follows the name there.
const PLACES: [(&str, &str); 8] = [
    (".config/codchi/machines", ""),
    (".local/share/codchi/machines", ""),
    (".local/share/codchi/secrets", ".age"),
    (".local/share/codchi/secrets", ".json"),
    (".local/state/codchi/generations", ""),
    (".local/state/codchi/logs", ""),
    (".local/state/codchi/fingerprints", ".json"),
    (".local/state/codchi/journal", ".json"),
];

/// A module whose text the suites change, with a secret that it does without; and one more beside it.
pub const FLAKE: &str = r#"{
  outputs = { self }: {
    nixosModules.default = ./module.nix;
    nixosModules.second = ./second.nix;
  };
}
"#;

/// The text of the module with a value in it.
pub fn module(value: &str) -> String {
    format!(
        r#"{{
  environment.etc."fixture/value".text = "{value}\n";
  codchi.secrets.token = {{ description = "a token"; kind = "file"; required = false; }};
}}
"#
    )
}

/// Writes the module's repository into the home.
pub fn modules(h: &Host, folder: &str) -> Result<String, Failed> {
    let dir = h.home.join(folder);
    let script = "rm -rf \"$0\" && mkdir -p \"$0\"";
    run(h.command("sh").args(["-c", script]).arg(&dir), b"")?.ok()?;
    h.file(&format!("{folder}/flake.nix"), FLAKE)?;
    h.file(&format!("{folder}/module.nix"), &module("0"))?;
    let second = "{ environment.etc.\"fixture/second\".text = \"second\\n\"; }\n";
    h.file(&format!("{folder}/second.nix"), second)?;
    h.commit(&dir)?;
    Ok(dir.to_string_lossy().into_owned())
}

/// All machines by name, as `status` tells them.
pub fn machines(h: &Host) -> Result<Vec<(String, Value)>, Failed> {
    let text = h.codchi(&["status", "--json"])?.ok()?.text();
    let all: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let list = all["machines"]
        .as_array()
        .ok_or("`machines` is no list")?
        .iter();
    Ok(list
        .filter_map(|m| Some((m["name"].as_str()?.to_string(), m.clone())))
        .collect())
}

/// The names of all machines.
pub fn names(h: &Host) -> Result<BTreeSet<String>, Failed> {
    Ok(machines(h)?.into_iter().map(|(name, _)| name).collect())
}

/// Finds what should not be there, of the machines whose names `mine` accepts, while no command on them runs.
pub fn strays(h: &Host, mine: &dyn Fn(&str) -> bool) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    let there = names(h)?;
    for (place, suffix) in PLACES {
        for entry in codchi_fs::read_dir(h.home.join(place)).unwrap_or_default() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(suffix).filter(|n| mine(n)) else {
                continue;
            };
            if place.ends_with("/journal") {
                found.push(format!("a journal of `{name}`"));
            } else if !there.contains(name) {
                found.push(format!("`{place}/{file}`, but no machine `{name}`"));
            }
        }
    }
    // Half written, claimed, or made and not put in place; the lock of a scratch folder goes with the next one.
    let script = r#"cd "$HOME"; find .config/codchi .local/state/codchi .local/share/codchi/secrets -ignore_readdir_race \
        \( -name '.*.new' -o -path '*/locks/*.new' -o \( -path '.config/codchi/.staging/*' ! -name '*.lock' \) \) -prune -print 2>/dev/null || true"#;
    let half = run(h.command("sh").args(["-c", script]), b"")?.ok()?.text();
    let of_mine = |path: &&str| {
        let word = |part: &str| {
            mine(
                part.trim_start_matches('.')
                    .split('.')
                    .next()
                    .unwrap_or_default(),
            )
        };
        // A folder in the making is `NAME-NUMBER`.
        path.split('/')
            .any(|part| word(part) || part.rsplit_once('-').is_some_and(|(n, _)| word(n)))
    };
    found.extend(half.lines().filter(of_mine).map(|l| format!("`{l}`")));
    // Each machine has user ids of its own.
    let mut ranges = Vec::new();
    for name in &there {
        // Another suite's machine may go meanwhile.
        let toml = h
            .home
            .join(format!(".config/codchi/machines/{name}/host.toml"));
        let text = codchi_fs::read_if_exists(toml)?.unwrap_or_default();
        let number = |key: &str| {
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix(key)?.trim().strip_prefix('='));
            line.and_then(|v| v.trim().parse::<u64>().ok())
        };
        if let (Some(base), Some(count)) = (number("base "), number("count ")) {
            ranges.push((base, base + count, name));
        }
    }
    ranges.sort();
    for pair in ranges.windows(2) {
        if pair[1].0 < pair[0].1 {
            found.push(format!(
                "`{}` and `{}` have the same user ids",
                pair[0].2, pair[1].2
            ));
        }
    }
    // Who looks after a machine that is not there.
    for process in h.processes() {
        if let Some((_, rest)) = process.split_once(" supervise ")
            && let Some(name) = rest.split(' ').next()
            && mine(name)
            && !there.contains(name)
        {
            found.push(format!("the process {process}"));
        }
    }
    // What a machine mounts is in namespaces of its own; the home itself may be a file system.
    let home = format!("{}/", h.home.display());
    for line in codchi_fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if line
            .split(' ')
            .nth(4)
            .is_some_and(|at| at.starts_with(&home))
        {
            found.push(format!("the mount {line}"));
        }
    }
    for dir in groups(h) {
        let file = dir.file_name().unwrap_or_default().to_string_lossy();
        // `codchi-NAME-DEVICE-INODE`
        let name = file
            .strip_prefix("codchi-")
            .and_then(|f| f.rsplitn(3, '-').nth(2));
        if let Some(name) = name.filter(|n| mine(n) && !there.contains(*n)) {
            found.push(format!("the control group {} of `{name}`", dir.display()));
        }
    }
    Ok(found)
}

/// The control groups of machines in which nothing runs: others may have machines of the same names, in which something does.
fn groups(h: &Host) -> Vec<PathBuf> {
    let script = r#"find /sys/fs/cgroup -ignore_readdir_race -path '*/codchi-tests' -prune -o -type d -name 'codchi-*-*-*' -prune -print |
        while read -r d; do grep -qs 'populated 1' $d/cgroup.events || [ -n "$(cat $d/cgroup.procs 2>/dev/null)" ] || echo $d; done"#;
    let found = run(h.command("sh").args(["-c", script]), b"");
    found.map_or_else(
        |_| Vec::new(),
        |done| done.text().lines().map(PathBuf::from).collect(),
    )
}

/// Requires that there is nothing of the kind, once what is on its way out has gone.
pub fn clean(h: &Host, mine: &dyn Fn(&str) -> bool) -> Result<(), Failed> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match strays(h, mine)?.as_slice() {
            [] => return Ok(()),
            all if Instant::now() > until => {
                return Err(format!("left behind: {}", all.join("; ")).into());
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
