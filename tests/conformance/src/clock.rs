//! The host's clock jumps: ten years ahead, ten years back. Nothing is lost, nobody waits, and nothing goes that was not to go.

use std::path::PathBuf;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::cases::same;
use crate::host::{Done, Host, run};
use crate::whole;

const MACHINE: &str = "clock";
const LATE: &str = "clocklate";
const AHEAD: &str = "+10y";
const BEHIND: &str = "-10y";

fn mine(name: &str) -> bool {
    name == MACHINE || name == LATE
}

/// The library that tells programs another time.
fn library() -> Result<PathBuf, Failed> {
    let folders = codchi_fs::read_dir("/usr/lib")?;
    let mut all = folders
        .iter()
        .map(|e| e.path().join("faketime/libfaketime.so.1"));
    Ok(all
        .find(|p| p.exists())
        .ok_or("libfaketime is not installed")?)
}

/// `codchi ARGS` and all programs that it starts, by a clock that is so far off.
fn at(h: &Host, off: &str, args: &[&str]) -> Result<Done, Failed> {
    let mut c = h.codchi_command(args);
    c.env("LD_PRELOAD", library()?)
        .env("FAKETIME", off)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DISABLE_SHM", "1");
    run(&mut c, b"")
}

/// The generations' numbers, and when the last was made.
fn generations(h: &Host) -> Result<(Vec<u64>, u64), Failed> {
    let text = h.codchi(&["generations", MACHINE, "--json"])?.ok()?.text();
    let told: Value = serde_json::from_str(&text)?;
    let all = told["generations"].as_array().ok_or("no generations")?;
    let last = all.last().and_then(|g| g["created"].as_u64());
    let numbers = all.iter().filter_map(|g| g["number"].as_u64()).collect();
    Ok((numbers, last.unwrap_or_default()))
}

pub fn jumps(h: &Host) -> Result<(), Failed> {
    let modules = whole::modules(h, "clockmodules")?;
    h.codchi(&["init", MACHINE, &modules, "default"])?.ok()?;
    h.sh(MACHINE, "echo precious > ~/keep")?;
    let first = generations(h)?.1;
    let years = 9 * 365 * 86_400;
    for off in [AHEAD, BEHIND] {
        h.file("clockmodules/module.nix", &whole::module(off))?;
        at(h, off, &["rebuild", MACHINE])?.ok()?;
        // The clock is off in the host's programs, and not in the machine.
        let made = generations(h)?.1;
        let is_off = match off {
            AHEAD => made > first + years,
            _ => made + years < first,
        };
        same("the generation is made by that clock", is_off, true)?;
        let told = at(h, off, &["status", MACHINE, "--json"])?.ok()?.text();
        let told: Value = serde_json::from_str(&told)?;
        let config = told["machines"][0]["config"].as_str();
        same("config by that clock", config, Some("up-to-date"))?;
        let config = h.status(MACHINE)?["config"].clone();
        same("config", config.as_str(), Some("up-to-date"))?;
        at(h, off, &["stop", MACHINE])?.ok()?;
        at(h, off, &["start", MACHINE])?.ok()?;
        let holds = h.sh(MACHINE, "cat ~/keep /etc/fixture/value")?;
        same("what it holds", holds, format!("precious\n{off}"))?;
        // Signatures of a mirror hold for a time.
        let late = at(h, off, &["init", LATE, &modules, "default"])?.exits(1)?;
        if !late.err.contains("is not accepted") {
            return Err(format!("by a clock at {off}: {}", late.err).into());
        }
        whole::clean(h, &mine)?;
    }
    let (all, _) = generations(h)?;
    same("generations", all.as_slice(), &[1, 2, 3])?;
    // Nothing goes by itself, and by its age only what is old by the clock of who asks.
    for off in [AHEAD, BEHIND] {
        at(h, off, &["gc"])?.ok()?;
        same("generations", generations(h)?.0, all.clone())?;
    }
    at(h, BEHIND, &["gc", "--older-than", "30d"])?.ok()?;
    h.codchi(&["gc", "--older-than", "30d"])?.ok()?;
    same("generations", generations(h)?.0, all.clone())?;
    at(h, AHEAD, &["gc", "--older-than", "30d"])?.exits(4)?;
    same("generations", generations(h)?.0, all)?;
    at(h, AHEAD, &["gc", "--older-than", "30d", "--yes"])?.ok()?;
    same("generations", generations(h)?.0, vec![2, 3])?;
    at(h, BEHIND, &["rollback", MACHINE])?.ok()?;
    let holds = h.sh(MACHINE, "cat ~/keep /etc/fixture/value")?;
    same("what it holds", holds, format!("precious\n{AHEAD}"))?;
    at(h, AHEAD, &["delete", "--yes", MACHINE])?.ok()?;
    whole::clean(h, &mine)
}
