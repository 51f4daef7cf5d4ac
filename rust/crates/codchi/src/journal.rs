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
    let file = app.dirs.journal(&plan.machine);
    if let Some(dir) = file.parent() {
        codchi_fs::create_private_dir(dir)?;
    }
    let mut journal =
        Journal { version: JOURNAL_VERSION, codchi: VERSION.into(), plan: plan.clone(), begun: 0 };
    for (n, step) in plan.steps.iter().enumerate() {
        fault::point("before", n);
        if !step.step.prepares() {
            journal.begun = n + 1;
            write(&file, &journal)?;
            app.printer.detail(&step.summary);
        }
        if let Err(failure) = worker.run(&step.step) {
            app.printer.done();
            undo(app, &journal, worker);
            return Err(failure);
        }
        fault::point("after", n);
    }
    Ok(codchi_fs::remove_if_exists(&file)?)
}

/// Puts right what went before a step that failed.
fn undo(app: &App, journal: &Journal, worker: &dyn Worker) {
    crate::interrupt::put_right();
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
        let _ = codchi_fs::remove_if_exists(app.dirs.journal(&journal.plan.machine));
    }
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

/// Brings a command that was cut short to an end, and says so. The caller holds the machine's lock.
pub fn recover(app: &App, _lock: &Lock, machine: &MachineName, worker: &dyn Worker) -> Result<()> {
    let file = app.dirs.journal(machine);
    let Some(text) = codchi_fs::read_if_exists(&file)? else { return Ok(()) };
    let mut journal: Journal = parse_json(&file, &text, &[])?;
    let command = journal.plan.command.clone();
    let mut recovery = journal.plan.recovery(journal.begun);
    // The folder was in place and is gone: a creation that failed was being taken back.
    if command == "init" && matches!(recovery, Recovery::Finish(_)) && !app.exists(machine) {
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
                write(&file, &journal)?;
                if let Err(failure) = worker.run(step) {
                    undo(app, &journal, worker);
                    return Err(failure);
                }
            }
        }
    }
    Ok(codchi_fs::remove_if_exists(&file)?)
}

fn write(file: &std::path::Path, journal: &Journal) -> Result<()> {
    let text = serde_json::to_string_pretty(journal).unwrap_or_default();
    Ok(codchi_fs::write_atomic(file, text, 0o600)?)
}
