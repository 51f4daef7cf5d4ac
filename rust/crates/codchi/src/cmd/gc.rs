//! `codchi gc`, `du`: what machines and the store take of the disk, and giving free what nobody needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use codchi_core::name::MachineName;
use codchi_core::plan::{Plan, Step};
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::status::{Collection, ForgottenGenerations, MachineUsage, Usage};
use codchi_core::text;
use codchi_nix::StorePath;
use codchi_nix::gc::Root;
use codchi_nix::generations::Generation;

use crate::app::{App, now};
use crate::cli::{self, NixFlags};
use crate::cmd::life::{self, each};
use crate::failure::{Failure, Result};
use crate::make::{Scratch, Tools};
use crate::worker::HostParts;

/// Which generations are old.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// Older than this, in seconds; none: of any age.
    older_than: Option<u64>,
    /// Not among the newest so many; none: two.
    keep: Option<u64>,
}

impl Rule {
    /// The generations that go, oldest first. `running` is the system of the running machine.
    fn old(self, all: &[Generation], running: Option<&str>, now: u64) -> Vec<u64> {
        if self.older_than.is_none() && self.keep.is_none() {
            return Vec::new();
        }
        let current = all.iter().position(|g| g.current);
        // An older generation may be the same system as the one in force.
        let runs_old = running.filter(|r| current.is_none_or(|c| all[c].record.toplevel.as_str() != *r));
        let newest = all.len().saturating_sub(self.keep.unwrap_or(1) as usize);
        let stays = |i: usize, g: &Generation| {
            let before = current.is_some_and(|c| i + 1 == c) && self.keep != Some(1);
            let young = self.older_than.is_some_and(|age| now.saturating_sub(g.record.created) < age);
            g.current || before || i >= newest || young || runs_old == Some(g.record.toplevel.as_str())
        };
        all.iter().enumerate().filter(|(i, g)| !stays(*i, g)).map(|(_, g)| g.number).collect()
    }

    fn of(self, app: &App, name: &MachineName) -> Result<Vec<u64>> {
        let all = app.generations(name).list()?;
        let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
        let running = driver.running_system(&HostParts::none().host(app, None), name)?;
        Ok(self.old(&all, running.as_deref(), now()))
    }
}

fn tools(app: &App) -> Result<Tools> {
    Tools::open(app, &NixFlags::default())?.ok_or_else(|| {
        Failure::new(Kind::NotFound, "there is no store yet").hint("the first `codchi init` makes one")
    })
}

/// The links that hold what a generation is and was made from.
fn links(app: &App, name: &MachineName, number: u64) -> Vec<PathBuf> {
    let generations = app.generations(name);
    let inputs = codchi_fs::read_dir(generations.inputs(number)).unwrap_or_default();
    let inputs = inputs.into_iter().map(|e| e.path());
    std::iter::once(generations.link(number)).chain(inputs).collect()
}

/// What a collection would remove, were these links gone: paths and their sizes.
fn forecast(tools: &Tools, gone: &BTreeSet<PathBuf>) -> Result<BTreeMap<StorePath, u64>> {
    let roots = tools.nix.roots(tools.store.collector())?;
    let goes = |r: &Root| gone.contains(std::path::Path::new(&r.holder));
    let of = |wanted: bool| -> BTreeSet<StorePath> {
        roots.iter().filter(|r| goes(r) == wanted).map(|r| r.path.clone()).collect()
    };
    let dead: BTreeSet<StorePath> = tools.nix.dead(tools.store.collector())?.into_iter().collect();
    let mut all: BTreeMap<StorePath, u64> =
        tools.nix.sizes(&dead)?.into_iter().map(|m| (m.path, m.bytes)).collect();
    if !gone.is_empty() {
        let held: BTreeSet<StorePath> = tools.nix.closures(&of(false))?.into_iter().map(|m| m.path).collect();
        let freed = tools.nix.closures(&of(true))?.into_iter().filter(|m| !held.contains(&m.path));
        all.extend(freed.map(|m| (m.path, m.bytes)));
    }
    Ok(all)
}

/// `gc`.
pub fn gc(app: &App, args: &cli::Gc) -> Result<()> {
    let rule = Rule { older_than: args.older_than, keep: args.keep };
    let names = match args.names.is_empty() {
        true => app.names()?,
        false => args.names.iter().map(|n| app.machine(n)).collect::<Result<_>>()?,
    };
    let tools = tools(app)?;
    let mut forgotten = Vec::new();
    let mut gone = BTreeSet::new();
    for name in &names {
        let numbers = match rule.of(app, name) {
            Err(_) if args.names.is_empty() && !app.exists(name) => continue,
            numbers => numbers?,
        };
        if !numbers.is_empty() {
            gone.extend(numbers.iter().flat_map(|n| links(app, name, *n)));
            forgotten.push(ForgottenGenerations { machine: name.clone(), numbers });
        }
    }
    app.printer.report(Event::Phase("looking for what nothing holds"));
    let freed = forecast(&tools, &gone)?;
    app.printer.done();
    let mut told = Collection {
        version: 1,
        done: false,
        paths: freed.len() as u64,
        bytes: freed.values().sum(),
        generations: forgotten,
    };
    if !app.globals.json {
        let print =
            |line: &str| if app.globals.dry_run { app.printer.data(line) } else { app.printer.say(line) };
        for of in &told.generations {
            let all = app.generations(&of.machine).list()?;
            for g in all.iter().filter(|g| of.numbers.contains(&g.number)) {
                let made = text::timestamp(g.record.created);
                print(&format!("`{}`: generation {} of {made} goes", of.machine, g.number));
            }
        }
        print(&match told.paths {
            0 => "the store holds nothing that nobody needs".to_string(),
            n => format!(
                "{} of the store, {}, {} with it",
                text::count(n, "path", "paths"),
                text::bytes(told.bytes),
                if n == 1 { "goes" } else { "go" }
            ),
        });
    }
    if app.globals.dry_run {
        if app.globals.json {
            app.printer.json(&told);
        }
        return Ok(());
    }
    if !told.generations.is_empty() {
        let count: usize = told.generations.iter().map(|f| f.numbers.len()).sum();
        app.confirm_yes(&format!(
            "forget {} for good?",
            text::count(count as u64, "generation", "generations")
        ))?;
    }
    // What others hold together before a generation roots it would go, and nothing is forgotten for nothing.
    refuse_busy(app)?;
    let machines: Vec<String> = told.generations.iter().map(|f| f.machine.to_string()).collect();
    let forgot = each(app, &machines, |name| forget(app, name, rule, &told.generations));
    refuse_busy(app)?;
    tools.nix.collect_garbage(tools.store.collector(), &app.printer)?;
    app.printer.done();
    let asked: Vec<StorePath> = freed.keys().cloned().collect();
    let gone: BTreeSet<StorePath> = tools.nix.invalid(&asked)?.into_iter().collect();
    told.done = true;
    told.paths = gone.len() as u64;
    told.bytes = freed.iter().filter(|(path, _)| gone.contains(*path)).map(|(_, bytes)| bytes).sum();
    if app.globals.json {
        app.printer.json(&told);
    } else {
        app.printer.say(&format!("{} given free", text::bytes(told.bytes)));
    }
    forgot
}

/// Refuses to collect while somebody makes something.
fn refuse_busy(app: &App) -> Result<()> {
    match Scratch::in_use(&app.dirs.staging())? {
        None => Ok(()),
        Some(user) => Err(Failure::new(Kind::Busy, format!("something is being made for `{user}`"))
            .hint("try again when it is done")),
    }
}

/// Forgets those generations that were shown and are still old.
fn forget(app: &App, name: &MachineName, rule: Rule, shown: &[ForgottenGenerations]) -> Result<()> {
    let shown = shown.iter().find(|f| f.machine == *name).map_or(&[][..], |f| &f.numbers);
    life::carry_out_with(app, name, "gc", || {
        let still = rule.of(app, name)?;
        let steps = still
            .iter()
            .filter(|n| shown.contains(n))
            .map(|n| Step::ForgetGeneration { number: *n as u32 })
            .collect();
        Ok(Plan::new("gc", name, steps))
    })
    .map(drop)
}

/// `du`.
pub fn du(app: &App, args: &cli::Du) -> Result<()> {
    let all = app.names()?;
    let wanted = match args.names.is_empty() {
        true => all.clone(),
        false => args.names.iter().map(|n| app.machine(n)).collect::<Result<_>>()?,
    };
    let tools = tools(app)?;
    app.printer.report(Event::Phase("measuring"));
    let roots = tools.nix.roots(tools.store.collector())?;
    let mut closures = BTreeMap::new();
    for name in &all {
        let own: BTreeSet<StorePath> = roots
            .iter()
            .filter(|r| is_of(app, &tools, name, std::path::Path::new(&r.holder)))
            .map(|r| r.path.clone())
            .collect();
        let members: BTreeMap<StorePath, u64> =
            tools.nix.closures(&own)?.into_iter().map(|m| (m.path, m.bytes)).collect();
        closures.insert(name.clone(), members);
    }
    let mut users: BTreeMap<&StorePath, (u64, u64)> = BTreeMap::new();
    for (path, bytes) in closures.values().flatten() {
        users.entry(path).or_insert((0, *bytes)).0 += 1;
    }
    let mut machines = Vec::new();
    for name in wanted {
        let attachment = match app.attachment(&name) {
            Err(_) if args.names.is_empty() && !app.exists(&name) => continue,
            attachment => attachment?,
        };
        let driver = codchi_drivers::find(&attachment.driver)?;
        let parts = HostParts::none();
        let files_bytes = driver.size(&parts.host(app, None), &name)?;
        let (mut alone_bytes, mut shared_bytes) = (0, 0);
        for (path, bytes) in closures.get(&name).into_iter().flatten() {
            match users.get(path) {
                Some((1, _)) => alone_bytes += bytes,
                _ => shared_bytes += bytes,
            }
        }
        let generations = app.generations(&name).list()?.len() as u64;
        machines.push(MachineUsage { name, files_bytes, alone_bytes, shared_bytes, generations });
    }
    let usage = Usage {
        version: 1,
        machines,
        shared_bytes: users.values().filter(|(n, _)| *n > 1).map(|(_, bytes)| bytes).sum(),
        free_bytes: forecast(&tools, &BTreeSet::new())?.values().sum(),
    };
    app.printer.done();
    if app.globals.json {
        app.printer.json(&usage);
        return Ok(());
    }
    let mut rows =
        vec![["NAME", "FILES", "STORE ALONE", "STORE SHARED", "GENERATIONS"].map(String::from).to_vec()];
    rows.extend(usage.machines.iter().map(|m| {
        vec![
            m.name.to_string(),
            m.files_bytes.map_or_else(|| "?".into(), text::bytes),
            text::bytes(m.alone_bytes),
            text::bytes(m.shared_bytes),
            m.generations.to_string(),
        ]
    }));
    app.printer.table(&rows);
    app.printer.say(&format!("{} of the store are shared", text::bytes(usage.shared_bytes)));
    if usage.free_bytes > 0 {
        app.printer.hint(&format!("`codchi gc` gives {} free", text::bytes(usage.free_bytes)));
    }
    Ok(())
}

/// Whether a link holds something for a machine: a generation, what it was made from, or something that was built inside.
fn is_of(app: &App, tools: &Tools, name: &MachineName, link: &std::path::Path) -> bool {
    link.starts_with(app.dirs.generations(name)) || link.starts_with(tools.store.roots_of(name))
}

#[cfg(test)]
mod tests {
    use codchi_nix::generations::{RECORD_VERSION, Record};

    use super::*;

    /// Generations by number and age in days; the second of the pair of `current` and so on.
    fn generations(ages: &[u64], current: u64) -> Vec<Generation> {
        let record = |n: u64, created: u64| Record {
            version: RECORD_VERSION,
            toplevel: format!("/nix/store/{}-{n}", "0".repeat(32)).parse().unwrap(),
            drv: None,
            driver: "d".into(),
            base: "debian".into(),
            base_label: "Debian".into(),
            codchi: "0".into(),
            nix: "2".into(),
            created,
            flake_nix: String::new(),
            flake_lock: String::new(),
        };
        let of = |(i, age): (usize, &u64)| {
            let number = i as u64 + 1;
            Generation { number, record: record(number, NOW - age * DAY), current: number == current }
        };
        ages.iter().enumerate().map(of).collect()
    }

    const DAY: u64 = 86_400;
    const NOW: u64 = 1000 * DAY;

    fn old(older_than: Option<u64>, keep: Option<u64>, ages: &[u64], current: u64) -> Vec<u64> {
        Rule { older_than: older_than.map(|d| d * DAY), keep }.old(&generations(ages, current), None, NOW)
    }

    #[test]
    fn without_a_rule_nothing_is_old() {
        assert!(old(None, None, &[9, 8, 7], 3).is_empty());
    }

    #[test]
    fn the_one_in_force_and_the_one_before_stay_unless_asked() {
        assert_eq!(old(Some(0), None, &[9, 8, 7, 6], 4), [1, 2]);
        assert_eq!(old(Some(0), Some(1), &[9, 8, 7, 6], 4), [1, 2, 3]);
        assert_eq!(old(None, Some(1), &[9, 8], 2), [1]);
        assert_eq!(old(None, Some(2), &[9, 8, 7], 3), [1]);
        assert!(old(None, Some(9), &[9, 8, 7], 3).is_empty());
        // Rolled back: what is newer is not needed, but the newest is kept.
        assert_eq!(old(Some(0), None, &[9, 8, 7, 6], 2), [3]);
        assert_eq!(old(None, Some(1), &[9, 8, 7, 6], 2), [1, 3]);
    }

    #[test]
    fn both_rules_must_say_so() {
        assert_eq!(old(Some(8), None, &[9, 8, 7, 6, 5], 5), [1, 2]);
        assert_eq!(old(Some(8), Some(4), &[9, 8, 7, 6, 5], 5), [1]);
        assert!(old(Some(30), Some(1), &[9, 8, 7], 3).is_empty());
    }

    #[test]
    fn what_runs_stays_whatever_is_in_force() {
        let all = generations(&[9, 8, 7], 3);
        let running = all[0].record.toplevel.to_string();
        let rule = Rule { older_than: Some(0), keep: Some(1) };
        assert_eq!(rule.old(&all, Some(&running), NOW), [2]);
        let mut same = generations(&[9, 8, 7], 3);
        same[2].record.toplevel = same[0].record.toplevel.clone();
        assert_eq!(rule.old(&same, Some(&running), NOW), [1, 2]);
    }
}
