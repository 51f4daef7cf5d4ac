//! Random sequences of commands, and a simple model of what should be there after each of them.
//!
//! As many sequences are run as fit in `CODCHI_TEST_SECONDS` (150), or `CODCHI_TEST_SEQUENCES` of them. One that ends otherwise
//! than the model is made shorter and printed with its seed; `CODCHI_TEST_SEED` begins with that one. Without it
//! the clock says where to begin, for runs that look for what is not known yet; `tests/model` has a seed and a number.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::Host;
use crate::whole;

/// Every case, in order.
pub const ALL: &[Case] = &[("random_commands_do_what_the_model_says", random)];

const NAMES: [&str; 3] = ["ma", "mb", "mc"];
const GOLD: &str = "mgold";

/// A command on machines by their places in [`NAMES`].
#[derive(Clone, Debug)]
enum Command {
    Duplicate(usize, usize),
    Rename(usize, usize),
    Delete(usize),
    Start(usize),
    Stop(usize),
    Restart(usize),
    /// Writes a file inside, which starts the machine.
    Write(usize, u64),
    AddModule(usize),
    RemoveModule(usize),
    Rebuild(usize),
    /// To the generation before, or to one by its number.
    Rollback(usize, Option<u64>),
    Collect(usize, u64),
    SetSecret(usize, u64),
    UnsetSecret(usize),
    AddMount(usize, u64),
    RemoveMount(usize, u64),
    AddPort(usize, u64),
    RemovePort(usize, u64),
    /// One that only shows what would be done.
    DryRun(usize, usize),
}

/// What a machine should be.
#[derive(Clone, Debug, Default)]
struct Machine {
    running: bool,
    /// What is in its file.
    file: Option<u64>,
    /// Whether its flake has the second module.
    second: bool,
    /// Whether the flake was edited since it was built.
    edited: bool,
    /// Generations by number: whether they have the second module.
    generations: BTreeMap<u64, bool>,
    current: u64,
    secret: Option<u64>,
    mounts: BTreeSet<u64>,
    ports: BTreeSet<u64>,
    /// Those that it has for certain: a running machine has them, and no other had wanted them when it took them.
    has: BTreeSet<u64>,
}

impl Machine {
    fn newest(&self) -> u64 {
        self.generations.last_key_value().map_or(0, |(n, _)| *n)
    }
}

type Machines = BTreeMap<&'static str, Machine>;

/// Whether a running machine other than `name` wants a port.
fn contested(all: &Machines, name: &str, n: u64) -> bool {
    all.iter()
        .any(|(other, m)| *other != name && m.running && m.ports.contains(&n))
}

/// Gives a machine, if it runs, the ports that it is certain to get.
fn give(all: &mut Machines, name: &str) {
    let free = (0..3).filter(|n| !contested(all, name, *n)).collect();
    if let Some(m) = all.get_mut(name).filter(|m| m.running) {
        m.has.extend(m.ports.intersection(&free).copied());
    }
}

/// An exit status of 0 or 1: whichever of the machines that want a port took it first.
const EITHER: i32 = -1;

/// Numbers that only depend on the seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The commands of a seed.
fn sequence(seed: u64) -> Vec<Command> {
    let mut r = Numbers(seed);
    let length = 3 + r.below(8);
    let command = |r: &mut Numbers| {
        // The first machine is the one that is there at the beginning.
        let a = [0, 0, 0, 1, 1, 2][r.below(6) as usize];
        let b = r.below(3) as usize;
        match r.below(29) {
            0..=2 => Command::Duplicate(a, b),
            3 | 4 => Command::Rename(a, b),
            5 => Command::Delete(a),
            6 | 7 => Command::Start(a),
            8 | 9 => Command::Stop(a),
            10 => Command::Restart(a),
            11 | 12 => Command::Write(a, r.below(1000)),
            13 => Command::AddModule(a),
            14 => Command::RemoveModule(a),
            15 | 16 => Command::Rebuild(a),
            17 => Command::Rollback(a, None),
            18 => Command::Rollback(a, Some(1 + r.below(4))),
            19 => Command::Collect(a, 1 + r.below(2)),
            20 => Command::SetSecret(a, r.below(1000)),
            21 => Command::UnsetSecret(a),
            22 | 23 => Command::AddMount(a, r.below(3)),
            24 => Command::RemoveMount(a, r.below(3)),
            25 | 26 => Command::AddPort(a, r.below(3)),
            27 => Command::RemovePort(a, r.below(3)),
            _ => Command::DryRun(a, b),
        }
    };
    (0..length).map(|_| command(&mut r)).collect()
}

/// Ports of the host that the machines have, three from `CODCHI_TEST_PORT` (31870) on: two runs at once need others.
fn host_port(n: u64) -> u64 {
    number("CODCHI_TEST_PORT").unwrap_or(31_870) + n
}

fn port(n: u64) -> String {
    format!("{}:80{n}", host_port(n))
}

impl Command {
    fn words(&self, h: &Host) -> Vec<String> {
        let shared = h.home.join("shared");
        let modules = h.home.join("modelmodules");
        let (shared, modules) = (shared.display(), modules.display());
        let text = match self {
            Command::Duplicate(a, b) => format!("duplicate {} {}", NAMES[*a], NAMES[*b]),
            Command::Rename(a, b) => format!("rename {} {}", NAMES[*a], NAMES[*b]),
            Command::Delete(a) => format!("delete --yes {}", NAMES[*a]),
            Command::Start(a) => format!("start {}", NAMES[*a]),
            Command::Stop(a) => format!("stop {}", NAMES[*a]),
            Command::Restart(a) => format!("restart {}", NAMES[*a]),
            Command::Write(a, n) => {
                format!("exec {} -- sh -c echo\u{a0}{n}\u{a0}>~/keep", NAMES[*a])
            }
            Command::AddModule(a) => {
                format!("module add {} {modules} second --as extra", NAMES[*a])
            }
            Command::RemoveModule(a) => format!("module remove {} extra", NAMES[*a]),
            Command::Rebuild(a) => format!("rebuild --yes {}", NAMES[*a]),
            Command::Rollback(a, None) => format!("rollback {}", NAMES[*a]),
            Command::Rollback(a, Some(n)) => format!("rollback {} --to {n}", NAMES[*a]),
            Command::Collect(a, n) => format!("gc --yes --keep {n} {}", NAMES[*a]),
            Command::SetSecret(a, _) => format!("secrets set {} token", NAMES[*a]),
            Command::UnsetSecret(a) => format!("secrets unset {} token", NAMES[*a]),
            Command::AddMount(a, n) => format!("mount add {} {shared}:/mnt/{n}", NAMES[*a]),
            Command::RemoveMount(a, n) => format!("mount remove {} /mnt/{n}", NAMES[*a]),
            Command::AddPort(a, n) => format!("port add {} {}", NAMES[*a], port(*n)),
            Command::RemovePort(a, n) => format!("port remove {} {}", NAMES[*a], host_port(*n)),
            Command::DryRun(a, b) => format!("duplicate --dry-run {} {}", NAMES[*a], NAMES[*b]),
        };
        text.split(' ').map(|w| w.replace('\u{a0}', " ")).collect()
    }

    /// What is read on standard input.
    fn input(&self) -> String {
        match self {
            Command::SetSecret(_, n) => n.to_string(),
            _ => String::new(),
        }
    }

    /// The first machine it is about.
    fn about(&self) -> &'static str {
        use Command::*;
        match self {
            Duplicate(a, _) | Rename(a, _) | Write(a, _) | Rollback(a, _) | Collect(a, _) => {
                NAMES[*a]
            }
            SetSecret(a, _)
            | AddMount(a, _)
            | RemoveMount(a, _)
            | AddPort(a, _)
            | RemovePort(a, _) => NAMES[*a],
            Delete(a) | Start(a) | Stop(a) | Restart(a) | AddModule(a) | RemoveModule(a) => {
                NAMES[*a]
            }
            Rebuild(a) | UnsetSecret(a) | DryRun(a, _) => NAMES[*a],
        }
    }

    /// Carries it out in the model: the exit status that it should have, or [`EITHER`].
    fn apply(&self, all: &mut Machines) -> i32 {
        let name = self.about();
        let status = self.change(all);
        for m in all.values_mut() {
            let kept: BTreeSet<u64> = m.has.intersection(&m.ports).copied().collect();
            m.has = if m.running { kept } else { BTreeSet::new() };
        }
        use Command::*;
        if let AddPort(_, n) = self
            && status == 0
            && all.get(name).is_some_and(|m| m.running)
            && contested(all, name, *n)
            && !all[name].has.contains(n)
        {
            let taken = all.values().any(|m| m.has.contains(n));
            give(all, name);
            return if taken { 1 } else { EITHER };
        }
        // What else takes a port that is free by now is not told: whoever has it is not certain.
        if matches!(
            self,
            Start(_)
                | Restart(_)
                | Write(..)
                | AddMount(..)
                | RemoveMount(..)
                | AddPort(..)
                | RemovePort(..)
        ) {
            give(all, name);
        }
        status
    }

    fn change(&self, all: &mut Machines) -> i32 {
        let name = self.about();
        let there: BTreeSet<&str> = all.keys().copied().collect();
        let Some(m) = all.get_mut(name) else {
            return match self {
                Command::Duplicate(a, b) | Command::Rename(a, b) | Command::DryRun(a, b)
                    if a == b =>
                {
                    2
                }
                Command::Write(..) => 125,
                _ => 5,
            };
        };
        match *self {
            Command::Duplicate(a, b) | Command::Rename(a, b) | Command::DryRun(a, b) if a == b => {
                return 2;
            }
            Command::Duplicate(_, b) | Command::Rename(_, b) | Command::DryRun(_, b)
                if there.contains(NAMES[b]) =>
            {
                return 1;
            }
            Command::DryRun(..) => {}
            Command::Duplicate(_, b) => {
                let built = m.generations[&m.current];
                let copy = Machine {
                    running: false,
                    generations: BTreeMap::from([(1, built)]),
                    edited: m.edited || m.current != m.newest(),
                    current: 1,
                    ..m.clone()
                };
                all.insert(NAMES[b], copy);
            }
            Command::Rename(_, b) => {
                let m = all.remove(name).unwrap_or_default();
                all.insert(NAMES[b], m);
            }
            Command::Delete(_) => drop(all.remove(name)),
            Command::Start(_) | Command::Restart(_) => m.running = true,
            Command::Stop(_) => m.running = false,
            Command::Write(_, n) => (m.running, m.file) = (true, Some(n)),
            Command::AddModule(_) if m.second => return 1,
            Command::RemoveModule(_) if !m.second => return 5,
            Command::AddModule(_) | Command::RemoveModule(_) => {
                (m.second, m.edited) = (!m.second, true)
            }
            Command::Rebuild(_) => {
                let newest = m.newest();
                if m.current != newest || m.generations[&newest] != m.second {
                    m.current = newest + 1;
                    m.generations.insert(m.current, m.second);
                }
                m.edited = false;
            }
            Command::Rollback(_, to) => {
                let before = m
                    .generations
                    .range(..m.current)
                    .next_back()
                    .map(|(n, _)| *n);
                match to.or(before) {
                    Some(n) if m.generations.contains_key(&n) => m.current = n,
                    _ => return 5,
                }
            }
            Command::Collect(_, keep) => {
                let numbers: Vec<u64> = m.generations.keys().copied().collect();
                let before = numbers
                    .iter()
                    .copied()
                    .rfind(|n| *n < m.current)
                    .filter(|_| keep != 1);
                let newest = &numbers[numbers.len().saturating_sub(keep as usize)..];
                m.generations
                    .retain(|n, _| *n == m.current || Some(*n) == before || newest.contains(n));
            }
            Command::SetSecret(_, n) => m.secret = Some(n),
            Command::UnsetSecret(_) => m.secret = None,
            Command::AddMount(_, n) => drop(m.mounts.insert(n)),
            Command::RemoveMount(_, n) if !m.mounts.remove(&n) => return 5,
            Command::AddPort(_, n) => drop(m.ports.insert(n)),
            Command::RemovePort(_, n) if !m.ports.remove(&n) => return 5,
            Command::RemoveMount(..) | Command::RemovePort(..) => {}
        }
        0
    }
}

/// The first thing that is otherwise than in the model, if any.
fn difference(h: &Host, all: &Machines, about: &str, command: &Command) -> Result<(), String> {
    let fail = |e: Failed| e.message().unwrap_or_default().to_string();
    let real = whole::machines(h).map_err(fail)?;
    let names: BTreeSet<&str> = real
        .iter()
        .map(|(n, _)| n.as_str())
        .filter(|n| NAMES.contains(n))
        .collect();
    let wanted: BTreeSet<&str> = all.keys().copied().collect();
    let differ = |what: &str, got: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
        Err(format!("{what}: {got:?}, not {wanted:?}"))
    };
    if names != wanted {
        return differ("the machines", &names, &wanted);
    }
    for (name, status) in real.iter().filter(|(n, _)| NAMES.contains(&n.as_str())) {
        let Some(m) = all.get(name.as_str()) else {
            continue;
        };
        let state = if m.running { "running" } else { "stopped" };
        if status["state"] != state {
            return differ(&format!("state of {name}"), &status["state"], &state);
        }
        if status["generation"] != m.current {
            return differ(
                &format!("generation of {name}"),
                &status["generation"],
                &m.current,
            );
        }
        let config = status["config"].as_str().unwrap_or_default();
        let right = match (
            m.current != m.newest(),
            m.generations[&m.current] != m.second,
        ) {
            (true, _) => config == "rolled-back",
            (false, true) => config == "modified",
            (false, false) => config == "up-to-date" || m.edited && config == "modified",
        };
        if !right {
            return differ(&format!("config of {name}"), &config, m);
        }
        let root = h.home.join(format!(
            ".local/share/codchi/machines/{name}/root/home/codchi/keep"
        ));
        let file = codchi_fs::read_if_exists(&root).map_err(|e| e.to_string())?;
        let file = file.and_then(|t| t.trim().parse::<u64>().ok());
        if file != m.file {
            return differ(&format!("file of {name}"), &file, &m.file);
        }
        let folder = h.home.join(format!(".config/codchi/machines/{name}"));
        let toml =
            codchi_fs::read_to_string(folder.join("host.toml")).map_err(|e| e.to_string())?;
        for n in 0..3 {
            if toml.contains(&format!("/mnt/{n}")) != m.mounts.contains(&n) {
                return differ(&format!("mounts of {name}"), &toml, &m.mounts);
            }
            if toml.contains(&format!("= {}\n", host_port(n))) != m.ports.contains(&n) {
                return differ(&format!("ports of {name}"), &toml, &m.ports);
            }
        }
        let flake =
            codchi_fs::read_to_string(folder.join("flake.nix")).map_err(|e| e.to_string())?;
        if flake.contains("inputs.extra.nixosModules.second") != m.second {
            return differ(&format!("flake.nix of {name}"), &flake, &m.second);
        }
        if name != about {
            continue;
        }
        let told = h
            .codchi(&["generations", name, "--json"])
            .and_then(|d| d.ok())
            .map_err(fail)?
            .text();
        let told: serde_json::Value = serde_json::from_str(&told).map_err(|e| e.to_string())?;
        let list = told["generations"].as_array().cloned().unwrap_or_default();
        let got: Vec<u64> = list.iter().filter_map(|g| g["number"].as_u64()).collect();
        let numbers: Vec<u64> = m.generations.keys().copied().collect();
        if got != numbers {
            return differ(&format!("generations of {name}"), &got, &numbers);
        }
        if m.running
            && matches!(
                command,
                Command::Rebuild(_)
                    | Command::Rollback(..)
                    | Command::Start(_)
                    | Command::Restart(_)
            )
        {
            let second = h
                .codchi(&["exec", name, "--", "test", "-e", "/etc/fixture/second"])
                .map_err(fail)?
                .status
                == 0;
            if second != m.generations[&m.current] {
                return differ(&format!("the second module in {name}"), &second, m);
            }
        }
        if matches!(
            command,
            Command::SetSecret(..)
                | Command::UnsetSecret(_)
                | Command::Duplicate(..)
                | Command::Rename(..)
        ) {
            let got = h.codchi(&["secrets", "get", name, "token"]).map_err(fail)?;
            let got = (got.status == 0)
                .then(|| got.text().parse::<u64>().ok())
                .flatten();
            if got != m.secret {
                return differ(&format!("secret of {name}"), &got, &m.secret);
            }
        }
    }
    Ok(())
}

/// Runs commands from the beginning: one machine, as it was made.
fn play(h: &Host, commands: &[Command], told: bool) -> Result<(), String> {
    let fail = |e: Failed| e.message().unwrap_or_default().to_string();
    let there = whole::names(h).map_err(fail)?;
    for name in NAMES.iter().filter(|n| there.contains(**n)) {
        h.codchi(&["delete", "--yes", name])
            .and_then(|d| d.ok())
            .map_err(fail)?;
    }
    h.codchi(&["duplicate", GOLD, NAMES[0]])
        .and_then(|d| d.ok())
        .map_err(fail)?;
    let first = Machine {
        generations: BTreeMap::from([(1, false)]),
        current: 1,
        ..Machine::default()
    };
    let mut all = Machines::from([(NAMES[0], first)]);
    for command in commands {
        let wanted = command.apply(&mut all);
        let words = command.words(h);
        let done = h
            .codchi_with(&words, command.input().as_bytes())
            .map_err(fail)?;
        let right = done.status == wanted || wanted == EITHER && matches!(done.status, 0 | 1);
        let outcome = if !right {
            Err(format!(
                "status {}, not {wanted}: {}",
                done.status,
                done.err.trim()
            ))
        } else {
            // Of two that it is about, what it made is of interest.
            let about = match command {
                Command::Duplicate(_, b) | Command::Rename(_, b) if wanted == 0 => NAMES[*b],
                other => other.about(),
            };
            difference(h, &all, about, command)
        };
        if told {
            println!("      codchi {}", words.join(" "));
        }
        outcome.map_err(|e| format!("`codchi {}`: {e}", words.join(" ")))?;
    }
    whole::clean(h, &|name| NAMES.contains(&name)).map_err(fail)
}

/// As few commands of a sequence that fails as still fail.
fn shorter(h: &Host, mut commands: Vec<Command>) -> Vec<Command> {
    for i in (0..commands.len()).rev() {
        let mut fewer = commands.clone();
        fewer.remove(i);
        if play(h, &fewer, false).is_err() {
            commands = fewer;
        }
    }
    commands
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn random(h: &Host) -> Result<(), Failed> {
    let modules = whole::modules(h, "modelmodules")?;
    crate::host::run(
        h.command("mkdir")
            .args(["-p", "-m", "700"])
            .arg(h.home.join("shared")),
        b"",
    )?
    .ok()?;
    h.codchi(&["init", GOLD, &modules, "default", "--no-start"])?
        .ok()?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let first = number("CODCHI_TEST_SEED").unwrap_or(clock * 1_000_000);
    let long = Duration::from_secs(number("CODCHI_TEST_SECONDS").unwrap_or(150));
    let many = number("CODCHI_TEST_SEQUENCES");
    let begun = Instant::now();
    let (mut sequences, mut commands) = (0, 0);
    while many.map_or(begun.elapsed() < long, |n| sequences < n) {
        let seed = first + sequences;
        let all = sequence(seed);
        sequences += 1;
        commands += all.len();
        if let Err(e) = play(h, &all, false) {
            println!("    the sequence of CODCHI_TEST_SEED={seed}: {e}\n    as short as it fails:");
            let fewer = shorter(h, all);
            let again = play(h, &fewer, true);
            return Err(
                format!("CODCHI_TEST_SEED={seed}: {e}\nshortest: {again:?}\n{fewer:?}").into(),
            );
        }
    }
    println!(
        "    {sequences} sequences, {commands} commands, no difference, from CODCHI_TEST_SEED={first}, in {} s",
        begun.elapsed().as_secs()
    );
    for name in whole::names(h)?
        .iter()
        .filter(|n| NAMES.contains(&n.as_str()) || *n == GOLD)
    {
        h.codchi(&["delete", "--yes", name])?.ok()?;
    }
    Ok(())
}
