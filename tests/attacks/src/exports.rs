//! Exports that are not what `codchi tar` writes, given to `codchi import`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::Failed;

use crate::host::{Done, run};
use crate::hostile::clean;
use crate::misc::as_nobody;
use crate::require;
use crate::stage::{ALICE, Stage, Who};

const BLOCK: usize = 512;
const NAME: &str = "imported";

/// An entry of a tar.
fn entry(kind: u8, name: &str, link: &str, mode: u32, uid: u64, data: &[u8]) -> Vec<u8> {
    let long = [("path", name), ("linkpath", link)]
        .into_iter()
        .filter(|(_, v)| v.len() > 100);
    let long: Vec<_> = long.collect();
    if !long.is_empty() {
        let short = |text: &'static str, of: &str| {
            if of.len() > 100 {
                text.to_string()
            } else {
                of.to_string()
            }
        };
        let own = entry(
            kind,
            &short("long", name),
            &short("long", link),
            mode,
            uid,
            data,
        );
        return [extended(&long), own].concat();
    }
    let mut head = vec![0; BLOCK];
    let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    for (at, id) in [(108, uid), (116, uid)] {
        let mut field = id.to_be_bytes();
        field[0] = 0x80;
        put(at, &field);
    }
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    if matches!(kind, b'3' | b'4') {
        put(329, b"0000001");
        put(337, b"0000001");
    }
    let sum: u32 = head.iter().map(|b| u32::from(*b)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head.extend_from_slice(data);
    head.resize(head.len().next_multiple_of(BLOCK), 0);
    head
}

fn file(name: &str, text: &str) -> Vec<u8> {
    entry(b'0', name, "", 0o644, 0, text.as_bytes())
}

fn link(name: &str, to: &str) -> Vec<u8> {
    entry(b'2', name, to, 0o777, 0, b"")
}

fn hard(name: &str, to: &str) -> Vec<u8> {
    entry(b'1', name, to, 0o644, 0, b"")
}

fn extended(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length += 1;
        }
        text.push_str(&format!("{length}{rest}"));
    }
    entry(b'x', "PaxHeaders/x", "", 0o644, 0, text.as_bytes())
}

/// A true export of `alice`: what Codchi put first, and all else.
fn export(stage: &Stage) -> Result<(&'static [u8], &'static [u8]), Failed> {
    static TAR: OnceLock<(Vec<u8>, usize, usize)> = OnceLock::new();
    if let Some((tar, head, end)) = TAR.get() {
        return Ok((&tar[..*head], &tar[*head..*end]));
    }
    let tar = stage.host.codchi(&["tar", ALICE, "-"])?.ok()?.out;
    let (mut at, mut begins, mut head) = (0, 0, None);
    while at + BLOCK <= tar.len() && tar[at] != 0 {
        let block = &tar[at..at + BLOCK];
        let name = block[..100].split(|b| *b == 0).next().unwrap_or_default();
        let size = std::str::from_utf8(&block[124..135])?;
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8)?;
        let more = matches!(block[156], b'x' | b'g' | b'L' | b'K');
        if !more && head.is_none() && !name.starts_with(b"etc/nixos") {
            head = Some(begins);
        }
        at += BLOCK + size.next_multiple_of(BLOCK);
        if !more {
            begins = at;
        }
    }
    let head = head.ok_or("the export has nothing but its head")?;
    let (tar, head, end) = TAR.get_or_init(|| (tar, head, at));
    Ok((&tar[..*head], &tar[*head..*end]))
}

/// Writes an export with more in it: behind its head, and behind all.
fn forge(stage: &Stage, in_head: &[Vec<u8>], behind: &[Vec<u8>]) -> Result<String, Failed> {
    let (head, rest) = export(stage)?;
    let whole = [
        head,
        &in_head.concat(),
        rest,
        &behind.concat(),
        &[0; 2 * BLOCK],
    ]
    .concat();
    let path = stage.host.home.join("hostile.tar");
    codchi_fs::remove_if_exists(&path)?;
    codchi_fs::write(&path, whole)?;
    codchi_fs::set_mode(&path, 0o644)?;
    Ok(path.to_string_lossy().into_owned())
}

fn is_there(stage: &Stage) -> bool {
    stage
        .host
        .home
        .join(".config/codchi/machines")
        .join(NAME)
        .exists()
        || stage.root(NAME).exists()
}

/// Imports it; it must be refused for that reason, with nothing left.
fn is_refused(stage: &Stage, file: &str, why: &str) -> Result<Done, Failed> {
    let done = stage.host.codchi(&["import", file, NAME])?;
    let there = is_there(stage);
    if there {
        stage.host.codchi(&["delete", "--yes", NAME])?.ok()?;
    }
    clean(&done)?;
    require(
        done.status != 0 && !there,
        format!("it was imported: {}", done.err),
    )?;
    require(
        done.err.contains(why),
        format!("it failed for another reason: {}", done.err),
    )?;
    Ok(done)
}

/// Where an entry that leads out of the tar could write, below the home.
const ESCAPED: &str = "escaped";

/// Tars with an entry that leads elsewhere, and why each is refused.
fn ways_out(stage: &Stage) -> Vec<(Vec<Vec<u8>>, &'static str)> {
    let home = stage.host.home.display().to_string();
    let up = "../".repeat(20);
    let below = home.trim_start_matches('/');
    let secret = format!("{up}{below}/public-secret");
    vec![
        (
            vec![file(&format!("{up}{below}/{ESCAPED}"), "out\n")],
            "leads out of the tar",
        ),
        (
            vec![file(&format!("{home}/{ESCAPED}"), "out\n")],
            "a path from the root",
        ),
        (
            vec![
                link("opt/out", &home),
                file(&format!("opt/out/{ESCAPED}"), "out\n"),
            ],
            "no folder",
        ),
        (
            vec![
                link("opt/out", &format!("{up}{below}")),
                file(&format!("opt/out/{ESCAPED}"), "x"),
            ],
            "no folder",
        ),
        (vec![hard("opt/stolen", &secret)], "hard link"),
        (
            vec![hard("opt/stolen", &format!("{home}/public-secret"))],
            "hard link",
        ),
        (
            vec![
                link("opt/out", &home),
                hard("opt/stolen", "opt/out/public-secret"),
            ],
            "hard link",
        ),
    ]
}

pub fn paths(stage: &Stage, _: Who) -> Result<(), Failed> {
    for (entries, why) in ways_out(stage) {
        is_refused(stage, &forge(stage, &[], &entries)?, why)?;
        require(
            !stage.host.home.join(ESCAPED).exists(),
            "a file was made outside",
        )?;
    }
    Ok(())
}

pub fn paths_control(stage: &Stage) -> Result<(), Failed> {
    let to = stage.host.home.join("unpacked");
    for (entries, why) in ways_out(stage) {
        codchi_fs::remove_dir_all(&to)?;
        codchi_fs::create_dir_all(to.join("opt"))?;
        let escaped = stage.host.home.join(ESCAPED);
        codchi_fs::remove_if_exists(&escaped)?;
        let tar = [entries.concat(), vec![0; 2 * BLOCK]].concat();
        let mut c = Command::new("tar");
        let done = run(c.arg("-xPf-").arg("-C").arg(&to), &tar)?;
        let stolen = codchi_fs::read_to_string(to.join("opt/stolen")).unwrap_or_default();
        let out = escaped.exists();
        codchi_fs::remove_if_exists(&escaped)?;
        require(
            out || stolen == "the host's\n",
            format!("it harms nobody who believes it ({why}): {}", done.err),
        )?;
    }
    codchi_fs::remove_dir_all(&to)?;
    Ok(())
}

/// What is taken, and does no harm.
fn odd(stage: &Stage) -> Vec<Vec<u8>> {
    let secret = stage.host.home.join("public-secret").display().to_string();
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "opt/sparse"),
        ("GNU.sparse.realsize", "4398046511104"),
    ];
    vec![
        entry(b'3', "opt/mem", "", 0o666, 0, b""),
        entry(b'4', "opt/disk", "", 0o666, 0, b""),
        entry(b'0', "opt/suid", "", 0o4755, 0, b"#!/bin/sh\n"),
        entry(b'0', "opt/nobodys", "", 0o4755, 4_000_000_000, b"x"),
        file("opt/\u{1b}[2J\u{1b}]0;owned\u{7}\n\u{202e}", "x"),
        link("opt/twice", &secret),
        file("opt/twice", "written over\n"),
        extended(&sparse),
        file(
            "GNUSparseFile.0/sparse",
            &format!("0\n{}", "\0".repeat(510)),
        ),
    ]
}

pub fn contents(stage: &Stage, _: Who) -> Result<(), Failed> {
    let file = forge(stage, &[], &odd(stage))?;
    let done = stage.host.codchi(&["import", &file, NAME])?.ok()?;
    let seen = look(stage);
    stage.host.codchi(&["delete", "--yes", NAME])?.ok()?;
    clean(&done)?;
    seen
}

/// What the host has of the odd export.
fn look(stage: &Stage) -> Result<(), Failed> {
    let opt = stage.root(NAME).join("opt");
    for e in codchi_fs::read_dir(&opt)? {
        let kind = e.file_type()?;
        let device = kind.is_char_device() || kind.is_block_device();
        require(
            !device,
            format!("`{}` is a device node", e.path().display()),
        )?;
    }
    let nobodys = opt.join("nobodys").symlink_metadata()?;
    require(
        nobodys.uid() != 0 && nobodys.uid() != 4_000_000_000,
        "it has an owner of the host",
    )?;
    let twice = opt.join("twice").symlink_metadata()?;
    require(
        twice.is_file() && twice.len() == 13,
        "of two entries the last does not count",
    )?;
    let sparse = opt.join("sparse").symlink_metadata()?;
    require(
        sparse.len() == 1 << 42 && sparse.blocks() < 64,
        format!("a file of holes takes {} blocks", sparse.blocks()),
    )?;
    let suid = opt.join("suid");
    require(
        suid.symlink_metadata()?.mode() & 0o4000 != 0,
        "the set-user-id bit is gone",
    )?;
    let ran = as_nobody(&[&suid.to_string_lossy()])?;
    require(
        ran.err.contains("denied"),
        format!("others reach it: {} {}", ran.text(), ran.err),
    )
}

pub fn contents_control(stage: &Stage) -> Result<(), Failed> {
    let to = stage.host.home.join("unpacked");
    codchi_fs::create_dir_all(to.join("opt"))?;
    let tar = [odd(stage).concat(), vec![0; 2 * BLOCK]].concat();
    let mut c = Command::new("tar");
    let done = run(
        c.args(["-xvpf-", "--same-owner", "--quoting-style=literal"])
            .arg("-C")
            .arg(&to),
        &tar,
    )?;
    let device = to
        .join("opt/mem")
        .symlink_metadata()?
        .file_type()
        .is_char_device();
    codchi_fs::remove_dir_all(&to)?;
    require(
        device && done.text().contains('\u{1b}'),
        "nothing of it comes through elsewhere either",
    )
}

/// Puts another value into the record.
fn record(stage: &Stage, change: impl FnOnce(&mut serde_json::Value)) -> Result<Vec<u8>, Failed> {
    let (head, _) = export(stage)?;
    let tar = stage.host.home.join("head.tar");
    codchi_fs::write(&tar, [head, &[0; 2 * BLOCK]].concat())?;
    let mut c = Command::new("tar");
    let text = run(c.arg("-xOf").arg(&tar).arg("etc/nixos/codchi.json"), b"")?
        .ok()?
        .text();
    let mut value = serde_json::from_str(&text)?;
    change(&mut value);
    Ok(file("etc/nixos/codchi.json", &value.to_string()))
}

const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}1";

pub fn records(stage: &Stage, _: Who) -> Result<(), Failed> {
    let newer = record(stage, |r| {
        r["version"] = 99.into();
        r["codchi"] = ESCAPES.into();
    })?;
    is_refused(stage, &forge(stage, &[newer], &[])?, "newer Codchi")?;
    for name in ["../../alice", ESCAPES, "alice/../x"] {
        let other = record(stage, |r| r["name"] = name.into())?;
        is_refused(stage, &forge(stage, &[other], &[])?, "codchi.json")?;
    }
    let other = record(stage, |r| r["driver"] = ESCAPES.into())?;
    is_refused(stage, &forge(stage, &[other], &[])?, "codchi.json")?;
    let other = record(stage, |r| r["base"] = ESCAPES.into())?;
    is_refused(stage, &forge(stage, &[other], &[])?, "base").map(drop)
}

pub fn records_control(stage: &Stage) -> Result<(), Failed> {
    let other = record(stage, |r| r["codchi"] = ESCAPES.into())?;
    require(
        String::from_utf8_lossy(&other).contains("\\u001b") || other.contains(&0x1b),
        "the record does not say it",
    )
}

const HASH: &str = "00000000000000000000000000000000";

/// An input that is a link to the folder with a file of the host.
fn stolen_input(stage: &Stage) -> Result<Vec<Vec<u8>>, Failed> {
    let private = stage.host.home.join("private");
    codchi_fs::create_dir_all(&private)?;
    codchi_fs::write(private.join("stolen-by-import"), "the person's own\n")?;
    stage.give(&private)?;
    let input = format!("/nix/store/{HASH}-stolen-by-import");
    let record = record(stage, |r| r["inputs"] = serde_json::json!([input]))?;
    let to = private.display().to_string();
    Ok(vec![record, link(&format!("etc/nixos/inputs/{HASH}"), &to)])
}

pub fn inputs(stage: &Stage, _: Who) -> Result<(), Failed> {
    let entries = stolen_input(stage)?;
    is_refused(
        stage,
        &forge(stage, &entries, &[])?,
        "is not what its name says",
    )?;
    let all = codchi_fs::read_dir(&stage.ready()?.store)?;
    let stolen = all.iter().find(|e| {
        e.file_name()
            .to_string_lossy()
            .ends_with("-stolen-by-import")
    });
    require(
        stolen.is_none(),
        format!("the store that all machines read has {stolen:?}"),
    )
}

pub fn inputs_control(stage: &Stage) -> Result<(), Failed> {
    let to = stage.host.home.join("unpacked");
    codchi_fs::create_dir_all(&to)?;
    let tar = [stolen_input(stage)?.concat(), vec![0; 2 * BLOCK]].concat();
    run(Command::new("tar").arg("-xf-").arg("-C").arg(&to), &tar)?.ok()?;
    let read = codchi_fs::read_to_string(
        to.join("etc/nixos/inputs")
            .join(HASH)
            .join("stolen-by-import"),
    );
    codchi_fs::remove_dir_all(&to)?;
    require(read? == "the person's own\n", "the link leads nowhere")
}

/// The flake of the export asks for what only a person can grant: a folder of hers to write to, and her ssh agent.
fn asking(stage: &Stage) -> Result<Vec<u8>, Failed> {
    let (head, _) = export(stage)?;
    let tar = stage.host.home.join("head.tar");
    codchi_fs::write(&tar, [head, &[0; 2 * BLOCK]].concat())?;
    let mut c = Command::new("tar");
    let flake = run(c.arg("-xOf").arg(&tar).arg("etc/nixos/flake.nix"), b"")?
        .ok()?
        .text();
    require(
        flake.contains("modules = ["),
        format!("no list of modules: {flake}"),
    )?;
    let private = stage.host.home.join("private");
    codchi_fs::create_dir_all(&private)?;
    stage.give(&private)?;
    let asks = format!(
        "modules = [ {{ codchi.mounts.\"/srv/theirs\".source = \"{}\"; codchi.hostSecrets.sshAgent.enable = true; }}",
        private.display()
    );
    let flake = flake.replace("modules = [", &asks);
    Ok(file("etc/nixos/flake.nix", &flake))
}

pub fn grants(stage: &Stage, _: Who) -> Result<(), Failed> {
    let forged = forge(stage, &[asking(stage)?], &[])?;
    let done = is_refused(stage, &forged, "--accept mount:")?;
    require(
        done.status == 4 && done.err.contains("--accept host-secret:sshAgent"),
        format!("it asked for something else: {}", done.err),
    )?;
    // A yes to all that is usual is none to this.
    let done = stage.host.codchi(&["import", "--yes", &forged, NAME])?;
    let there = is_there(stage);
    if there {
        stage.host.codchi(&["delete", "--yes", NAME])?.ok()?;
    }
    require(
        done.status == 4 && !there,
        format!("`--yes` granted it: {}", done.err),
    )
}

pub fn grants_control(stage: &Stage) -> Result<(), Failed> {
    let forged = forge(stage, &[asking(stage)?], &[])?;
    let yes = [
        "import",
        &forged,
        NAME,
        "--accept",
        "mount",
        "--accept",
        "host-secret",
    ];
    stage.host.codchi(&yes)?.ok()?;
    let kept = stage
        .host
        .home
        .join(".config/codchi/machines")
        .join(NAME)
        .join("host.toml");
    let kept = codchi_fs::read_to_string(kept);
    stage.host.codchi(&["delete", "--yes", NAME])?.ok()?;
    require(
        kept?.contains("= /srv/theirs rw"),
        "who says yes does not get it",
    )
}
