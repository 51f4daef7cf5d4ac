//! Carrying out plans: each step is written down before it runs, and what was cut short is brought to an end by the next
//! command that takes the machine's lock.

use codchi_core::document::parse_json;
use codchi_core::name::MachineName;
use codchi_core::plan::{JOURNAL_VERSION, Journal, Plan, Recovery, Step};
use codchi_fs::Lock;

use crate::app::{App, VERSION};
use crate::failure::Result;
use crate::fault;

/// Carries out single steps.
pub trait Worker {
    /// Does a step. What is done already is fine.
    fn run(&self, step: &Step) -> Result<()>;
    /// Takes back a generation.
    fn forget_generation(&self, number: u64) -> Result<()>;
}

/// Runs the steps of a plan with a journal. `lock` is proof that the machine is ours. On failure what was begun is taken
/// back or finished as [`Plan::recovery`] says, and the first error is given.
pub fn execute(app: &App, _lock: &Lock, plan: &Plan, worker: &dyn Worker) -> Result<()> {
    if let Some(dir) = app.dirs.journal(&plan.machine).parent() {
        codchi_fs::create_private_dir(dir)?;
    }
    let mut journal =
        Journal { version: JOURNAL_VERSION, codchi: VERSION.into(), plan: plan.clone(), begun: 0 };
    for (n, step) in plan.steps.iter().enumerate() {
        fault::point("before", n);
        if !step.step.prepares() {
            journal.begun = n + 1;
            match write(app, &journal) {
                // Who gives up or frees something on a full disk must not be kept from it.
                Err(e) if e.is_full() && plan.only_frees() => {
                    app.printer.warn(&format!("{e}; going on without a record of it"));
                }
                written => written?,
            }
            app.printer.detail(&step.summary);
        }
        if let Err(failure) = worker.run(&step.step) {
            app.printer.done();
            undo(app, &journal, worker);
            return Err(failure);
        }
        fault::point("after", n);
    }
    remove(app, plan)
}

/// Puts right what went before a step that failed.
fn undo(app: &App, journal: &Journal, worker: &dyn Worker) {
    crate::interrupt::put_right();
    if journal.plan.is_left_to_finish(journal.begun) || is_gone_but_for_its_folder(journal) {
        let (command, machine) = (&journal.plan.command, &journal.plan.machine);
        app.printer
            .warn(&format!("`codchi {command} {machine}` is not done; the next command on it finishes it"));
        return;
    }
    let mut whole = true;
    for step in journal.plan.after_failure(journal.begun) {
        if let Err(failure) = back(&step, worker) {
            whole = false;
            app.printer.warn(&format!(
                "could not take back what `{}` began: {}",
                journal.plan.command, failure.message
            ));
        }
    }
    // What is left is for the next command.
    if whole {
        let _ = remove(app, &journal.plan);
    }
}

/// Whether the last of a deletion failed: the machine has nothing any more by which another command would know it.
fn is_gone_but_for_its_folder(journal: &Journal) -> bool {
    let failed = journal.begun.checked_sub(1).and_then(|i| journal.plan.steps.get(i));
    journal.plan.command == "delete" && failed.is_some_and(|s| matches!(s.step, Step::RemoveConfig { .. }))
}

fn back(step: &Step, worker: &dyn Worker) -> Result<()> {
    match step {
        Step::AddGeneration { number, .. } => worker.forget_generation(u64::from(*number)),
        other => worker.run(other),
    }
}

/// Whether a command was cut short on this machine.
pub fn is_open(app: &App, machine: &MachineName) -> bool {
    app.dirs.journal(machine).exists()
}

/// All names on which a command was cut short, of machines that are there and of those that were in the making.
pub fn all(app: &App) -> Result<Vec<MachineName>> {
    let entries = match codchi_fs::read_dir(app.dirs.journals()) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |e: &std::fs::DirEntry| e.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
    Ok(entries.iter().filter_map(name).collect())
}

/// The journal of a command that was cut short on this machine.
pub fn read(app: &App, machine: &MachineName) -> Result<Option<Journal>> {
    let file = app.dirs.journal(machine);
    match codchi_fs::read_if_exists(&file)? {
        Some(text) => Ok(Some(parse_json(&file, &text, &[])?)),
        None => Ok(None),
    }
}

/// Brings a command that was cut short to an end, and says so. The caller holds the lock of `lock`'s machine; a second name of
/// the machine is locked here.
pub fn recover(app: &App, _lock: &Lock, machine: &MachineName, worker: &dyn Worker) -> Result<()> {
    let Some(mut journal) = read(app, machine)? else { return Ok(()) };
    let other = journal.plan.names().find(|n| *n != machine).cloned();
    let _second = other.as_ref().map(|o| app.lock(o, &journal.plan.command)).transpose()?;
    // It is written for one name after the other.
    if let Some(further) = other.map(|o| read(app, &o)).transpose()?.flatten()
        && further.plan == journal.plan
    {
        journal.begun = journal.begun.max(further.begun);
    }
    let names: Vec<MachineName> = journal.plan.names().cloned().collect();
    let command = journal.plan.command.clone();
    let (creates, machine) = (journal.plan.creates(), &journal.plan.machine.clone());
    let mut recovery = journal.plan.recovery(journal.begun);
    // The folder was in place and is gone: a creation that failed was being taken back.
    if creates && matches!(recovery, Recovery::Finish(_)) && !app.exists(machine) {
        recovery = Recovery::Undo(journal.plan.after_failure(journal.begun));
    }
    match recovery {
        Recovery::Undo(steps) => {
            app.printer
                .say(&format!("`codchi {command} {machine}` was cut short; taking back what it had begun"));
            for step in &steps {
                back(step, worker)?;
            }
        }
        Recovery::Finish(steps) => {
            app.printer.say(&format!("`codchi {command} {machine}` was cut short; finishing it"));
            let first = journal.plan.steps.len() - steps.len();
            for (i, step) in steps.iter().enumerate() {
                journal.begun = first + i + 1;
                write(app, &journal)?;
                if let Err(failure) = worker.run(step) {
                    undo(app, &journal, worker);
                    return Err(failure);
                }
            }
        }
    }
    remove(app, &journal.plan)?;
    // Of two names one is free now.
    for gone in names.iter().filter(|n| names.len() > 1 && !app.exists(n)) {
        codchi_fs::remove_if_exists(app.dirs.lock(gone))?;
    }
    Ok(())
}

fn write(app: &App, journal: &Journal) -> codchi_fs::Result<()> {
    let text = serde_json::to_string_pretty(journal).unwrap_or_default();
    for name in journal.plan.names() {
        codchi_fs::write_atomic(app.dirs.journal(name), &text, 0o600)?;
    }
    Ok(())
}

fn remove(app: &App, plan: &Plan) -> Result<()> {
    // The name that a renaming takes away last: as long as it is said to be in use, no other machine is given it.
    let names: Vec<&MachineName> = plan.names().collect();
    for name in names.into_iter().rev() {
        codchi_fs::remove_if_exists(app.dirs.journal(name))?;
    }
    Ok(())
}
