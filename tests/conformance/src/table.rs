//! What each driver is able to do: the table in the book, made of this suite's own results.

use std::path::Path;

/// Why a driver does not do what a case shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unable {
    /// It cannot be done on it.
    Never(&'static str),
    /// Nobody has done it yet.
    NotYet(&'static str),
}

impl Unable {
    /// As in the table.
    pub fn text(self) -> String {
        match self {
            Unable::Never(why) => format!("not possible: {why}"),
            Unable::NotYet(why) => format!("not yet: {why}"),
        }
    }
}

/// The cases that a kind of run leaves out, with the reason. All others have to pass.
const LEFT_OUT: &[(&str, &str, Unable)] = &[
    (
        "incus",
        "a_duplicate_has_every_file_and_an_identity_of_its_own",
        Unable::NotYet("the engine copies the files; no test has shown it"),
    ),
    (
        "incus",
        "a_renamed_machine_has_everything_under_its_new_name",
        Unable::NotYet("the engine renames the instance; no test has shown it"),
    ),
    (
        "incus",
        "entering_works_without_the_agent",
        Unable::NotYet("the error says how to start the agent again"),
    ),
    (
        "incus",
        "the_store_cannot_be_unmounted",
        Unable::Never(
            "the engine mounts it in the machine's own namespace; a machine's root can hide it from itself",
        ),
    ),
];

/// Why a case is left out in this kind of run; none: it has to pass.
pub fn left_out(kind: &str, case: &str) -> Option<Unable> {
    LEFT_OUT
        .iter()
        .find(|(k, c, _)| *k == kind && *c == case)
        .map(|(_, _, why)| *why)
}

const FILE: &str = "docs/reference/capabilities.md";
const HEAD: &str = "# What each driver does\n\nGenerated from the conformance suite: a row is a case that runs against the real \
                    engine, and *works* that the suite fails when it does not pass.\n";

/// Kinds of runs, as columns.
const COLUMNS: [&str; 3] = ["root", "rootless", "incus"];
const TITLES: [&str; 3] = ["native, as root", "native, as a user", "incus, as root"];

/// The table, of all cases. A case is *works* where it is not left out: the suite fails when it does not pass.
fn render(cases: &[&str]) -> String {
    let mut out = format!(
        "{HEAD}\n| a machine | {} |\n|---|---|---|---|\n",
        TITLES.join(" | ")
    );
    for case in cases {
        let cells: Vec<String> = COLUMNS
            .iter()
            .map(|kind| left_out(kind, case).map_or_else(|| "works".into(), Unable::text))
            .collect();
        out.push_str(&format!(
            "| {} | {} |\n",
            case.replace('_', " "),
            cells.join(" | ")
        ));
    }
    out
}

/// Writes the table.
pub fn write(repo: &Path, cases: &[&str]) -> Result<(), String> {
    codchi_fs::write(repo.join(FILE), render(cases)).map_err(|e| e.to_string())
}

/// Compares the table with what a whole run has shown.
pub fn check(repo: &Path, cases: &[&str]) -> Result<(), String> {
    let old = codchi_fs::read_if_exists(repo.join(FILE)).map_err(|e| e.to_string())?;
    if old.as_deref() == Some(&render(cases)) {
        return Ok(());
    }
    Err(format!(
        "{FILE} is stale: run the suite with CODCHI_SUITE=table"
    ))
}
