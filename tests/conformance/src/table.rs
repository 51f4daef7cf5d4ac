//! What each driver is able to do: the table in the book, made of this suite's own results.

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

/// Kinds of runs, and the columns they are in the table.
const COLUMNS: [(&str, &str); 3] = [
    ("root", "native, as root"),
    ("rootless", "native, as a user"),
    ("incus", "incus, as root"),
];

const SESSION: Unable = Unable::NotYet("the caller's session and host are not led into it");

/// The cases that kinds of runs leave out, with the reason. All others have to pass.
const LEFT_OUT: &[(&[&str], &str, Unable)] = &[
    (
        &["incus"],
        "entering_works_without_the_agent",
        Unable::NotYet("the error says how to start the agent again"),
    ),
    (
        &["incus"],
        "the_store_cannot_be_unmounted",
        Unable::Never(
            "the engine mounts it in the machine's own namespace; a machine's root can hide it from itself",
        ),
    ),
    (
        &["incus"],
        "a_machine_may_see_only_its_closure",
        Unable::NotYet("the engine mounts the whole store"),
    ),
    (
        &["incus"],
        "secrets_cannot_be_unmounted",
        Unable::Never("they are given to the machine's own namespace"),
    ),
    (
        &["incus"],
        "session_capabilities_that_are_missing_are_told",
        SESSION,
    ),
    (&["incus"], "session_host_secrets_are_delivered", SESSION),
    (
        &["incus"],
        "session_certificates_of_the_host_are_trusted",
        SESSION,
    ),
    (
        &["incus"],
        "session_ssh_agent_logs_in_and_may_restart",
        SESSION,
    ),
    (
        &["incus"],
        "session_git_asks_the_host_for_granted_servers",
        SESSION,
    ),
    (&["incus"], "session_x11_needs_no_cookie_inside", SESSION),
    (
        &["incus"],
        "session_wayland_and_sound_reach_the_caller",
        SESSION,
    ),
    (
        &["incus"],
        "session_kvm_is_there_once_it_is_granted",
        SESSION,
    ),
];

/// Why a case is left out in this kind of run; none: it has to pass.
pub fn left_out(kind: &str, case: &str) -> Option<Unable> {
    let why = LEFT_OUT
        .iter()
        .find(|(kinds, c, _)| kinds.contains(&kind) && *c == case);
    why.map(|(_, _, why)| *why)
}

const HEAD: &str = "# What each driver does\n\nGenerated from the conformance suite: a row is a case that runs against the real \
                    engine, and *works* that the suite fails when it does not pass.\n";

/// The table, of all cases.
pub fn render(cases: &[&str]) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|(_, title)| *title).collect();
    let mut out = format!("{HEAD}\n| a machine | {} |\n", titles.join(" | "));
    out.push_str(&format!("|---|{}\n", "---|".repeat(COLUMNS.len())));
    for case in cases {
        let cells: Vec<String> = COLUMNS
            .iter()
            .map(|(kind, _)| left_out(kind, case).map_or_else(|| "works".into(), Unable::text))
            .collect();
        out.push_str(&format!(
            "| {} | {} |\n",
            case.replace('_', " "),
            cells.join(" | ")
        ));
    }
    out
}
