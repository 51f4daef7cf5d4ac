//! Two commands at once on one machine: whoever is second waits, or says who is first; nothing of either is lost.
//!
//! `CODCHI_TEST_PAIRS=all` runs every pair; otherwise a fixed share of them, and what was left out is printed.
#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::{Done, Host};
use crate::whole;

/// Every case, in order.
pub const ALL: &[Case] = &[("two_commands_at_once", two_at_once)];

/// How long two commands may take. Whatever waits for a lock without an end is found by it.
const LONGEST: Duration = Duration::from_secs(400);

/// How a command says that another is at work on what it is about.
const BUSY: [&str; 3] = ["(process ", "changed meanwhile", "is being made for"];

/// A file of the person's in the machine.
const KEPT: &str = "precious";

/// What a command does to the names: `P` is the machine, `Q` a name that nobody has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Changes `P`.
    Changes,
    /// Makes `Q`.
    Makes,
    /// Makes `Q` with the files of `P`.
    Copies,
    /// `P` is `Q` then.
    Renames,
    /// `P` is gone.
    Deletes,
}

/// A command; `N` is a number that no pair had before.
struct Op {
    args: &'static [&'static str],
    effect: Effect,
    /// Shown by the machine that was `P`, once the command was successful: a shell command on the host, where `P` stands for its name.
    shows: Option<&'static str>,
}

const fn op(args: &'static [&'static str], effect: Effect) -> Op {
    Op {
        args,
        effect,
        shows: None,
    }
}

const fn seen(args: &'static [&'static str], effect: Effect, shows: &'static str) -> Op {
    Op {
        args,
        effect,
        shows: Some(shows),
    }
}

const OPS: &[Op] = &[
    op(&["init", "Q", "--no-start"], Effect::Makes),
    op(&["install", "Q", "--toplevel", "TOP"], Effect::Makes),
    op(&["import", "TAR", "Q"], Effect::Copies),
    op(&["duplicate", "P", "Q"], Effect::Copies),
    op(&["rename", "P", "Q"], Effect::Renames),
    op(&["delete", "--yes", "P"], Effect::Deletes),
    op(&["start", "P"], Effect::Changes),
    op(&["stop", "P"], Effect::Changes),
    op(&["restart", "P"], Effect::Changes),
    op(&["rebuild", "--yes", "P"], Effect::Changes),
    op(&["rollback", "P"], Effect::Changes),
    op(&["update", "P"], Effect::Changes),
    seen(
        &["module", "add", "P", "MODULES", "second", "--as", "extra"],
        Effect::Changes,
        r#""$0" module list P --json | grep -q '"extra"'"#,
    ),
    seen(
        &["secrets", "set", "P", "token"],
        Effect::Changes,
        r#"test "$("$0" secrets get P token)" = value-N"#,
    ),
    seen(
        &["mount", "add", "P", "HOME/shared:/mnt/N", "--optional"],
        Effect::Changes,
        r#""$0" mount list P --json | grep -q /mnt/N"#,
    ),
    seen(
        &["port", "add", "P", "PORT:80"],
        Effect::Changes,
        r#""$0" port list P --json | grep -q PORT"#,
    ),
    seen(
        &["tar", "P", "HOME/out-N.tar"],
        Effect::Changes,
        "tar -tf out-N.tar >/dev/null && rm out-N.tar",
    ),
    op(&["gc", "--keep", "2", "--yes", "P"], Effect::Changes),
    op(&["exec", "P", "--", "true"], Effect::Changes),
];

/// Names and files that pairs use, one set for each that runs them at the same time.
struct Lane<'a> {
    h: &'a Host,
    p: String,
    q: String,
    gold: String,
    modules: String,
    tar: String,
    top: String,
    port: u16,
}

impl<'a> Lane<'a> {
    fn new(h: &'a Host, lane: usize) -> Result<Lane<'a>, Failed> {
        let (p, q, gold) = (
            format!("pair{lane}"),
            format!("pairnew{lane}"),
            format!("pairgold{lane}"),
        );
        let modules = whole::modules(h, &format!("modules{lane}"))?;
        h.codchi(&["init", &gold, &modules, "default"])?.ok()?;
        h.sh(&gold, &format!("echo {KEPT} > ~/keep"))?;
        let tar = h.home.join(format!("{gold}.tar"));
        let tar = tar.to_string_lossy().into_owned();
        h.codchi(&["tar", &gold, &tar, "--yes"])?.ok()?;
        let top = h.status(&gold)?["toplevel"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        h.codchi(&["stop", &gold])?.ok()?;
        let port = 20_000 + 5_000 * u16::try_from(lane)?;
        Ok(Lane {
            h,
            p,
            q,
            gold,
            modules,
            tar,
            top,
            port,
        })
    }

    fn mine(&self, name: &str) -> bool {
        name == self.p || name == self.q
    }

    /// The machine `p` that runs its newest of two generations, and nothing called `q`.
    fn prepare(&self, n: usize) -> Result<(), Failed> {
        let h = self.h;
        let there = whole::names(h)?;
        if there.contains(&self.q) {
            h.codchi(&["delete", "--yes", &self.q])?.ok()?;
        }
        if !there.contains(&self.p) {
            h.codchi(&["duplicate", &self.gold, &self.p, "--start"])?
                .ok()?;
        } else if h
            .codchi(&["module", "list", &self.p, "--json"])?
            .ok()?
            .text()
            .contains("\"extra\"")
        {
            h.codchi(&["module", "remove", &self.p, "extra"])?.ok()?;
        }
        let shared = h.home.join("shared");
        crate::host::run(
            h.command("mkdir").args(["-p", "-m", "700"]).arg(shared),
            b"",
        )?
        .ok()?;
        h.codchi(&["start", &self.p])?.ok()?;
        h.file(
            &format!(
                "{}/module.nix",
                self.modules.rsplit('/').next().unwrap_or_default()
            ),
            &whole::module(&n.to_string()),
        )?;
        let generations = h.codchi(&["generations", &self.p, "--json"])?.ok()?.text();
        let all: serde_json::Value = serde_json::from_str(&generations)?;
        let all = all["generations"].as_array().ok_or("no generations")?;
        match all.last() {
            Some(last) if all.len() > 1 && last["current"] == true => Ok(()),
            Some(last) if all.len() > 1 => {
                let number = last["number"].to_string();
                h.codchi(&["rollback", &self.p, "--to", &number])?.ok()?;
                Ok(())
            }
            _ => {
                let name = self.modules.rsplit('/').next().unwrap_or_default();
                h.file(
                    &format!("{name}/module.nix"),
                    &whole::module(&format!("{n}, first")),
                )?;
                h.codchi(&["rebuild", "--yes", &self.p])?.ok()?;
                h.file(
                    &format!("{name}/module.nix"),
                    &whole::module(&n.to_string()),
                )
            }
        }
    }

    fn words(&self, text: &str, n: usize) -> String {
        let port = self.port + u16::try_from(n % 4000).unwrap_or_default();
        match text {
            "P" => self.p.clone(),
            "Q" => self.q.clone(),
            "TOP" => self.top.clone(),
            "TAR" => self.tar.clone(),
            "MODULES" => self.modules.clone(),
            other => other
                .replace("HOME", &self.h.home.to_string_lossy())
                .replace("PORT", &port.to_string())
                .replace("/mnt/N", &format!("/mnt/{n}"))
                .replace("out-N", &format!("out-{}-{n}", self.p))
                .replace("value-N", &format!("value-{n}")),
        }
    }

    fn spawn(&self, op: &Op, n: usize) -> Result<Child, Failed> {
        use std::io::Write;
        let args: Vec<String> = op.args.iter().map(|a| self.words(a, n)).collect();
        let mut child = self
            .h
            .codchi_command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // Few commands read it.
            let _ = stdin.write_all(format!("value-{n}").as_bytes());
        }
        Ok(child)
    }

    /// Runs two commands at once and looks at what is there then.
    fn pair(&self, a: usize, b: usize, n: usize) -> Result<(), Failed> {
        let h = self.h;
        self.prepare(n)?;
        let (first, second) = (&OPS[a], &OPS[b]);
        // Each has a number of its own, so that what both write differs.
        let (na, nb) = (2 * n, 2 * n + 1);
        let children = [self.spawn(first, na)?, self.spawn(second, nb)?];
        let mut done = Vec::new();
        for child in children {
            done.push(wait(child)?);
        }
        let told = done
            .iter()
            .map(|d| format!("status {}: {}", d.status, d.err.trim()))
            .collect::<Vec<_>>()
            .join("\n  ");
        let failed = |what: String| Failed::from(format!("{what}\n  {told}"));
        for done in &done {
            self.documented(done).map_err(&failed)?;
        }
        let ok = |i: usize| done[i].status == 0;
        if !ok(0) && !ok(1) {
            return Err(failed("neither was successful".into()));
        }
        let happened = |effect: &[Effect]| {
            [(first, 0), (second, 1)]
                .iter()
                .filter(|(op, i)| effect.contains(&op.effect) && ok(*i))
                .count()
        };
        let made = happened(&[Effect::Makes, Effect::Copies, Effect::Renames]);
        let gone = happened(&[Effect::Renames, Effect::Deletes]);
        if made > 1 || gone > 1 {
            return Err(failed(
                "both were successful where one excludes the other".into(),
            ));
        }
        let mut wanted = BTreeSet::new();
        if gone == 0 {
            wanted.insert(self.p.clone());
        }
        if made == 1 {
            wanted.insert(self.q.clone());
        }
        let got: BTreeSet<String> = whole::names(h)?
            .into_iter()
            .filter(|n| self.mine(n))
            .collect();
        if got != wanted {
            return Err(failed(format!("there are {got:?}, not {wanted:?}")));
        }
        whole::clean(h, &|name| self.mine(name))
            .map_err(|e| failed(e.message().unwrap_or_default().into()))?;
        let renamed = happened(&[Effect::Renames]) == 1;
        let old = match (renamed, got.contains(&self.p)) {
            (true, _) => Some(&self.q),
            (false, true) => Some(&self.p),
            _ => None,
        };
        for (op, i, n) in [(first, 0, na), (second, 1, nb)] {
            // Of two that write the same, one is the last.
            let both = a == b && ok(0) && ok(1);
            if let (Some(shows), Some(name), true) = (op.shows, old, ok(i) && !both) {
                let script = self.words(&shows.replace(" P ", &format!(" {name} ")), n);
                crate::host::run(h.command("sh").args(["-c", &script]).arg(h.program()), b"")?
                    .exits(0)
                    .map_err(|_| failed(format!("`{script}` does not hold")))?;
            }
        }
        for name in &got {
            // What is made of nothing has no files of the person's; it works.
            let copy = happened(&[Effect::Makes]) == 0 || *name == self.p;
            let script = if copy { "cat ~/keep" } else { "true" };
            let said = h
                .sh(name, script)
                .map_err(|e| failed(e.message().unwrap_or_default().into()))?;
            if copy && said != KEPT {
                return Err(failed(format!("`{name}` lost its file")));
            }
        }
        Ok(())
    }

    /// A command ends with 0, or with a documented status and what it is about.
    fn documented(&self, done: &Done) -> Result<(), String> {
        let named = done.err.contains(&format!("`{}`", self.p))
            || done.err.contains(&format!("`{}`", self.q));
        let error = done.err.lines().any(|l| l.starts_with("error: "));
        let told = error && named;
        match done.status {
            0 => Ok(()),
            // A collection waits for no machine, whichever it is.
            6 if error && BUSY.iter().any(|why| done.err.contains(why)) => Ok(()),
            // There was nothing of that name, or there is already.
            5 if told => Ok(()),
            1 if told && done.err.contains("already") => Ok(()),
            // `exec` has 125 for all of these.
            125 if told => Ok(()),
            other => Err(format!("status {other} is not one of two commands at once")),
        }
    }
}

fn wait(mut child: Child) -> Result<Done, Failed> {
    use std::io::Read;
    let (mut stdout, mut stderr) = (
        child.stdout.take().ok_or("no stdout")?,
        child.stderr.take().ok_or("no stderr")?,
    );
    let out = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = stdout.read_to_end(&mut all);
        all
    });
    let err = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = stderr.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    });
    let until = Instant::now() + LONGEST;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().unwrap_or(-1);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(format!(
                "no end after {} s: {}",
                LONGEST.as_secs(),
                err.join().unwrap_or_default()
            )
            .into());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(Done {
        status,
        out: out.join().unwrap_or_default(),
        err: err.join().unwrap_or_default(),
    })
}

/// Lanes that run pairs at the same time.
const LANES: usize = 2;
/// Of the pairs, one in so many is run when not all are.
const SHARE: usize = 4;

fn two_at_once(h: &Host) -> Result<(), Failed> {
    let every: Vec<(usize, usize)> = (0..OPS.len())
        .flat_map(|a| (a..OPS.len()).map(move |b| (a, b)))
        .collect();
    let all = std::env::var("CODCHI_TEST_PAIRS").is_ok_and(|v| v == "all");
    let chosen: Vec<(usize, usize)> = every
        .iter()
        .copied()
        .enumerate()
        .filter(|(i, _)| all || i % SHARE == 0)
        .map(|(_, p)| p)
        .collect();
    // `A,B` runs one pair, by the numbers that a failure tells.
    let chosen = match std::env::var("CODCHI_TEST_PAIRS")
        .ok()
        .as_deref()
        .and_then(|v| v.split_once(','))
    {
        Some((a, b)) => vec![(a.parse()?, b.parse()?)],
        None => chosen,
    };
    let begun = Instant::now();
    let next = std::sync::Mutex::new(chosen.iter().enumerate());
    let failures = std::sync::Mutex::new(Vec::new());
    let lanes: Vec<Lane> = (0..LANES)
        .map(|n| Lane::new(h, n))
        .collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        for lane in &lanes {
            let (next, failures) = (&next, &failures);
            scope.spawn(move || {
                loop {
                    let Some((n, &(a, b))) = next.lock().ok().and_then(|mut n| n.next()) else {
                        return;
                    };
                    // Either of them is the first to be started, in some pair or other.
                    let (a, b) = if n % 2 == 0 { (a, b) } else { (b, a) };
                    if let Err(e) = lane.pair(a, b, n) {
                        let what = format!(
                            "{a},{b} `{}` and `{}`: {}",
                            OPS[a].args.join(" "),
                            OPS[b].args.join(" "),
                            e.message().unwrap_or_default()
                        );
                        println!("    {what}");
                        if let Ok(mut f) = failures.lock() {
                            f.push(what);
                        }
                    }
                }
            });
        }
    });
    println!(
        "    {} pairs of commands at once, in {} s; left out without CODCHI_TEST_PAIRS=all: {}",
        chosen.len(),
        begun.elapsed().as_secs(),
        every.len() - chosen.len()
    );
    let failures = failures.into_inner().map_err(|_| "a lane broke off")?;
    if !failures.is_empty() {
        return Err(format!("{} pairs:\n{}", failures.len(), failures.join("\n")).into());
    }
    for lane in &lanes {
        for name in whole::names(h)?
            .iter()
            .filter(|n| lane.mine(n) || **n == lane.gold)
        {
            h.codchi(&["delete", "--yes", name])?.ok()?;
        }
    }
    Ok(())
}
