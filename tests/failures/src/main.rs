//! `codchi-failures NOTES...`: which errors that the sources can give were printed while the tests ran, by the notes that
//! debug builds of the program leave in a file `failures` beside themselves; and whether those that were are said as the others
//! are. Those that no test has reached are listed; those that nothing should lead to, and tell of a defect of the program, are not
//! among them, and must not have been printed. Last comes the line with the sum.
#![allow(clippy::print_stdout)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod sources;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use sources::Site;

/// How many errors the tests reach whatever chance brings: those of the suites unit, sources and conformance reach 222, of which
/// some depend on the computer. Whoever adds tests raises it.
const AT_LEAST: usize = 205;

type Failure = Box<dyn std::error::Error>;

/// What was printed.
struct Said {
    message: String,
    status: u64,
    hints: Vec<String>,
}

fn main() -> Result<ExitCode, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rust/crates");
    let sites = sources::read(&root)?;
    let mut said = Vec::new();
    for file in std::env::args_os().skip(1) {
        for line in codchi_fs::read_to_string(file)?.lines() {
            said.push(parse(line).ok_or_else(|| format!("this is no note: {line}"))?);
        }
    }
    // For who reads it: chance decides which words of other programs are among them.
    for line in ill_said(&said) {
        println!("{line}");
    }
    let is_reached = |site: &Site| said.iter().any(|s| site.pattern.is_match(&s.message));
    let (internal, sites): (Vec<&Site>, Vec<&Site>) = sites.iter().partition(|s| s.internal);
    let total = sites.len();
    let (reached, unreached): (Vec<&Site>, Vec<&Site>) =
        sites.into_iter().partition(|s| is_reached(s));
    for site in &unreached {
        println!("not reached: {}: `{}`", site.at, site.template);
    }
    println!(
        "of {} errors, {} were not reached: {} % were; {} more tell of defects of the program",
        total,
        unreached.len(),
        100 * reached.len() / total.max(1),
        internal.len()
    );
    let defects: Vec<_> = internal.iter().filter(|s| is_reached(s)).collect();
    for site in &defects {
        println!("a defect was told of: {}: `{}`", site.at, site.template);
    }
    let few = reached.len() < AT_LEAST;
    if few {
        println!("at least {AT_LEAST} errors were reached before");
    }
    let failed = defects.len() + usize::from(few);
    println!("{} passed, {failed} failed", reached.len());
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn parse(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    let hints = value["hints"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned);
    Some(Said {
        message: value["message"].as_str()?.to_owned(),
        status: value["status"].as_u64()?,
        hints: hints.collect(),
    })
}

/// Failures that are not said as the others are.
fn ill_said(said: &[Said]) -> Vec<String> {
    let mut bad = BTreeMap::new();
    for s in said {
        let mut wrong = |what: &str| {
            bad.insert(
                format!("{what}: `{}`", s.message.lines().next().unwrap_or_default()),
                (),
            );
        };
        if s.message.trim().is_empty() {
            wrong("says nothing");
        }
        // What another program says stands after a colon, as that program says it.
        let own = |t: &&String| !t.contains(": ") && t.ends_with('.') && !t.ends_with("..");
        if std::iter::once(&s.message).chain(&s.hints).any(|t| own(&t)) {
            wrong("ends with a full stop");
        }
        if matches!(s.status, 3 | 4 | 6)
            && s.hints.is_empty()
            && !s.message.ends_with("nothing was changed")
        {
            wrong("does not say what to do next");
        }
    }
    bad.into_keys().collect()
}
