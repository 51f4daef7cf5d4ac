//! What an earlier version of this program wrote is read, used and brought up to date; what a later one wrote is refused.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use serde_json::Value;

use crate::cases::same;
use crate::host::{Host, run};
use crate::whole;

const MACHINE: &str = "kept";
const RENAMED: &str = "other";

fn mine(name: &str) -> bool {
    name == MACHINE || name == RENAMED
}

/// Where the documents of a machine are, below the home, and what they are called in the fixture.
fn documents(number: u64) -> Vec<(&'static str, String)> {
    let state = |file: &str| format!(".local/state/codchi/{file}");
    vec![
        ("config.toml", ".config/codchi/config.toml".into()),
        (
            "host.toml",
            format!(".config/codchi/machines/{MACHINE}/host.toml"),
        ),
        (
            "flake.nix",
            format!(".config/codchi/machines/{MACHINE}/flake.nix"),
        ),
        (
            "generation.json",
            state(&format!("generations/{MACHINE}/{number}.json")),
        ),
        ("secrets-key.age", state("secrets-key.age")),
        (
            "secrets.age",
            format!(".local/share/codchi/secrets/{MACHINE}.age"),
        ),
        (
            "secrets.json",
            format!(".local/share/codchi/secrets/{MACHINE}.json"),
        ),
    ]
}

/// A document of the fixture, with what is this host's own.
fn document(h: &Host, file: &str, own: &[(&str, String)]) -> Result<Vec<u8>, Failed> {
    let path = h.repo.join("tests/fixtures/earlier/1").join(file);
    let Ok(mut text) = codchi_fs::read_to_string(&path) else {
        return Ok(codchi_fs::read(&path)?);
    };
    for (word, value) in own {
        text = text.replace(word, value);
    }
    Ok(text.into_bytes())
}

fn lay(path: &Path, content: &[u8]) -> Result<(), Failed> {
    if let Some(dir) = path.parent() {
        codchi_fs::create_private_dir(dir)?;
    }
    Ok(codchi_fs::write_atomic(path, content, 0o600)?)
}

/// Every document there is, by name.
fn all(h: &Host) -> Result<BTreeMap<PathBuf, Vec<u8>>, Failed> {
    let script = r#"cd "$HOME"; find .config/codchi .local/state/codchi .local/share/codchi/secrets -name locks -prune -o \
        -name '.store.lock' -o -name lock -o \( -type f -o -type l \) -print"#;
    let list = run(h.command("sh").args(["-c", script]), b"")?.ok()?.text();
    let content = |name: &str| -> Result<_, Failed> {
        let path = h.home.join(name);
        let target = codchi_fs::read_link_if_exists(&path).ok().flatten();
        Ok((
            path.clone(),
            match target {
                Some(to) => to.into_os_string().into_encoded_bytes(),
                None => codchi_fs::read(&path)?,
            },
        ))
    };
    list.lines().map(content).collect()
}

fn toplevel(h: &Host, number: u64) -> Result<String, Failed> {
    let text = h.codchi(&["generations", MACHINE, "--json"])?.ok()?.text();
    let told: Value = serde_json::from_str(&text)?;
    let all = told["generations"].as_array().ok_or("no generations")?;
    let found = all.iter().find(|g| g["number"] == number);
    let path = found.and_then(|g| g["toplevel"].as_str());
    Ok(path
        .ok_or(format!("there is no generation {number}: {text}"))?
        .into())
}

fn value(h: &Host, name: &str) -> Result<String, Failed> {
    h.sh(
        name,
        "cat ~/keep /etc/fixture/value /run/codchi/secrets/token",
    )
}

/// The documents are laid in place of those of a machine that this program made; then everything is done with it.
pub fn read(h: &Host) -> Result<(), Failed> {
    let modules = whole::modules(h, "keptmodules")?;
    let change = |text: &str| h.file("keptmodules/module.nix", &whole::module(text));
    h.codchi(&["init", MACHINE, &modules, "default"])?.ok()?;
    h.sh(MACHINE, "echo precious > ~/keep")?;
    change("1")?;
    h.codchi(&["rebuild", MACHINE])?.ok()?;
    h.codchi(&["stop", MACHINE])?.ok()?;
    let lock = |number: u64| -> Result<String, Failed> {
        let file = format!(".local/state/codchi/generations/{MACHINE}/{number}.json");
        let record: Value = serde_json::from_slice(&codchi_fs::read(h.home.join(file))?)?;
        Ok(record["flakeLock"].as_str().unwrap_or_default().into())
    };
    let host = h
        .home
        .join(format!(".config/codchi/machines/{MACHINE}/host.toml"));
    let host = codchi_fs::read_to_string(host)?;
    let number = |key: &str| -> Result<String, Failed> {
        let ids = host.split_once("[ids]").unwrap_or_default().1;
        let line = ids
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(" = "));
        Ok(line.ok_or(format!("no `{key}` in {host}"))?.into())
    };
    let mut own = vec![
        ("@suite@", h.suite.clone()),
        ("@modules@", modules.clone()),
        ("@home@", h.home.to_string_lossy().into_owned()),
        ("@base@", number("base")?),
        ("@count@", number("count")?),
    ];
    let flake = String::from_utf8_lossy(&document(h, "flake.nix", &own)?).into_owned();
    own.push(("\"@flake@\"", serde_json::to_string(&flake)?));
    for number in [1, 2] {
        let mut own = own.clone();
        own.push(("@toplevel@", toplevel(h, number)?));
        own.push(("\"@lock@\"", serde_json::to_string(&lock(number)?)?));
        for (file, to) in documents(number) {
            lay(&h.home.join(to), &document(h, file, &own)?)?;
        }
    }

    // Everything of it is there, and is what it was.
    let told = h.status(MACHINE)?;
    same("state", told["state"].as_str(), Some("stopped"))?;
    same("generation", told["generation"].as_u64(), Some(2))?;
    h.codchi(&["rebuild", MACHINE])?.ok()?;
    let told = h.status(MACHINE)?;
    same("generation", told["generation"].as_u64(), Some(2))?;
    same("config", told["config"].as_str(), Some("up-to-date"))?;
    h.codchi(&["start", MACHINE])?.ok()?;
    same(
        "what it holds",
        value(h, MACHINE)?,
        "precious\n1\nkept-secret".into(),
    )?;
    change("2")?;
    h.codchi(&["rebuild", MACHINE])?.ok()?;
    // A rebuild that was cut short when its switch was done.
    own.push(("@toplevel@", toplevel(h, 3)?));
    let journal = |name: &str| {
        h.home
            .join(format!(".local/state/codchi/journal/{name}.json"))
    };
    lay(&journal(MACHINE), &document(h, "rebuild.json", &own)?)?;
    let said = h.codchi(&["start", MACHINE])?.ok()?.err;
    if !said.contains("was cut short; finishing it") || journal(MACHINE).exists() {
        return Err(format!("the rebuild was not finished: {said}").into());
    }
    same(
        "what it holds",
        value(h, MACHINE)?,
        "precious\n2\nkept-secret".into(),
    )?;
    h.codchi(&["rollback", MACHINE])?.ok()?;
    same(
        "what it holds",
        value(h, MACHINE)?,
        "precious\n1\nkept-secret".into(),
    )?;
    // And one that is to have another name, of which everything was taken back but what says so.
    for name in [MACHINE, RENAMED] {
        lay(&journal(name), &document(h, "rename.json", &own)?)?;
    }
    let said = h.codchi(&["start", MACHINE])?.err;
    if !said.contains("was cut short; finishing it") {
        return Err(format!("the renaming was not finished: {said}").into());
    }
    same(
        "what it holds",
        value(h, RENAMED)?,
        "precious\n1\nkept-secret".into(),
    )?;
    h.codchi(&["rename", RENAMED, MACHINE])?.ok()?;

    import(h, &mut own)?;
    later(h, &own)?;
    h.codchi(&["delete", "--yes", MACHINE])?.ok()?;
    codchi_fs::remove_file(h.home.join(".config/codchi/config.toml"))?;
    whole::clean(h, &mine)
}

/// An export as that version wrote it.
fn import(h: &Host, own: &mut Vec<(&str, String)>) -> Result<(), Failed> {
    let script = |text: &str| run(h.command("bash").args(["-euc", text]), b"")?.ok();
    h.codchi(&[
        "tar",
        "--yes",
        MACHINE,
        &h.home.join("kept.tar").to_string_lossy(),
    ])?
    .ok()?;
    script("rm -rf kept-tar; mkdir kept-tar; tar -xpf kept.tar --numeric-owner -C kept-tar")?;
    let record = h.home.join("kept-tar/etc/nixos/codchi.json");
    let now: Value = serde_json::from_slice(&codchi_fs::read(&record)?)?;
    own.push(("@inputs@", now["inputs"].to_string()));
    // The flake comes first, and of that the record.
    let pack = "cd kept-tar; tar -cf ../kept.tar --numeric-owner --no-recursion etc/nixos etc/nixos/codchi.json; \
                tar -rf ../kept.tar --numeric-owner --exclude=etc/nixos/codchi.json etc/nixos; \
                tar -rf ../kept.tar --numeric-owner --exclude=etc/nixos *";
    let text = document(h, "codchi.json", own)?;
    let file = h.home.join("kept.tar");
    let file = file.to_string_lossy();
    codchi_fs::write(&record, &text)?;
    script(pack)?;
    h.codchi_with(
        &["import", &file, RENAMED, "--start", "--secret", "token=-"],
        b"again",
    )?
    .ok()?;
    same(
        "what it holds",
        value(h, RENAMED)?,
        "precious\n2\nagain".into(),
    )?;
    h.codchi(&["delete", "--yes", RENAMED])?.ok()?;
    let later = String::from_utf8_lossy(&text).replace("\"version\": 1", "\"version\": 99");
    codchi_fs::write(&record, later)?;
    script(pack)?;
    let before = all(h)?;
    refused(h, &["import", &file, RENAMED])?;
    same("documents", all(h)?, before)?;
    script("rm -rf kept-tar kept.tar").map(|_| ())
}

fn refused(h: &Host, args: &[&str]) -> Result<(), Failed> {
    let said = h.codchi(args)?.exits(1)?.err;
    for wanted in ["has version 99", "knows versions up to 1", "newer Codchi"] {
        if !said.contains(wanted) {
            return Err(format!("`codchi {}`: {said}", args.join(" ")).into());
        }
    }
    Ok(())
}

/// Each document in turn as if a later version had written it: nothing is done that would take it for something else.
fn later(h: &Host, own: &[(&str, String)]) -> Result<(), Failed> {
    let journal = format!(".local/state/codchi/journal/{MACHINE}.json");
    h.codchi(&["stop", MACHINE])?.ok()?;
    let documents = documents(2)
        .into_iter()
        .chain([("rename.json", journal.clone())]);
    for (file, to) in documents {
        let path = h.home.join(&to);
        if file == "rename.json" {
            lay(&path, &document(h, file, own)?)?;
        }
        let text = codchi_fs::read(&path)?;
        let words = String::from_utf8_lossy(&text).into_owned();
        let later = words.replacen("version = 1", "version = 99", 1).replacen(
            "\"version\": 1",
            "\"version\": 99",
            1,
        );
        if later == words {
            continue;
        }
        codchi_fs::write_atomic(&path, later, 0o600)?;
        let before = all(h)?;
        let commands: &[&[&str]] = match file {
            "secrets.json" => &[
                &["secrets", "list", MACHINE],
                &["secrets", "set", MACHINE, "token"],
                &["start", MACHINE],
            ],
            "generation.json" => &[
                &["generations", MACHINE],
                &["rebuild", MACHINE],
                &["start", MACHINE],
            ],
            // Deleting is the way out of a command that cannot be brought to an end.
            "rename.json" => &[
                &["start", MACHINE],
                &["rebuild", MACHINE],
                &["rename", MACHINE, RENAMED],
            ],
            _ => &[
                &["start", MACHINE],
                &["rebuild", MACHINE],
                &["rename", MACHINE, RENAMED],
                &["delete", "--yes", MACHINE],
            ],
        };
        for args in commands {
            refused(h, args)
                .and_then(|()| same("documents", all(h)?, before.clone()))
                .map_err(|e| {
                    format!("with a later `{file}`: {}", e.message().unwrap_or_default())
                })?;
        }
        codchi_fs::write_atomic(&path, text, 0o600)?;
        println!("    `{file}` of a later version is refused");
    }
    Ok(codchi_fs::remove_if_exists(h.home.join(journal))?)
}
