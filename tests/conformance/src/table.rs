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
const COLUMNS: [(&str, &str); 10] = [
    ("root", "native, as root"),
    ("rootless", "native, as a user"),
    ("incus", "incus, as root"),
    ("lxd", "lxd, as root"),
    ("oci", "oci, as root"),
    ("rootlessoci", "oci, as a user"),
    ("qemu", "qemu, as root"),
    ("rootlessqemu", "qemu, as a user"),
    ("libvirt", "libvirt, as root"),
    ("rootlesslibvirt", "libvirt, as a user"),
];

/// The kind of which the exceptions are those of another, too.
fn family(kind: &str) -> &str {
    match kind {
        "rootlessqemu" | "libvirt" | "rootlesslibvirt" => "qemu",
        "lxd" => "incus",
        other => other,
    }
}

/// A boot takes a minute where processors are emulated, so that few cases are run there; what the others show is not known.
const UNSEEN: Unable = Unable::NotYet("not seen there");

/// All that is run on virtual machines.
const ON_VIRTUAL_MACHINES: &[&str] = &[
    "create_from_a_repository",
    "init_of_a_taken_name_changes_nothing",
    "init_script_ran_once_as_the_user",
    "status_tells_what_runs",
    "systemd_reaches_running",
    "exec_keeps_arguments_exact",
    "exec_returns_the_exit_status",
    "exec_relays_input_and_output",
    "exec_keeps_large_streams_whole",
    "exec_has_the_login_environment",
    "exec_takes_user_and_directory",
    "exec_gives_a_terminal_when_asked",
    "exec_forwards_signals",
    "exec_many_at_once",
    "a_lost_client_ends_its_command",
    "services_of_the_module_run",
    "users_and_groups_of_the_module_exist",
    "sudo_works",
    "files_keep_owner_mode_and_content",
    "the_store_is_read_only",
    "the_daemon_builds_for_the_machine",
    "ports_lead_into_the_machine",
    "folders_of_the_host_are_in_the_machine",
    "the_network_reaches_out_but_not_the_host",
    "a_rebuild_without_changes_does_nothing",
    "qemu_a_machine_is_rebuilt_and_rolled_back",
    "qemu_a_machine_is_off_and_on_with_its_files",
    "qemu_what_serves_a_machine_has_no_file_of_the_host_to_write",
    "qemu_a_machine_goes_on_that_a_killed_copy_left_stopped",
    "qemu_copies_and_moves_keep_every_file_of_a_running_machine",
    "qemu_an_export_boots_without_a_driver",
    "session_capabilities_that_are_missing_are_told",
    "session_host_secrets_are_delivered",
    "session_certificates_of_the_host_are_trusted",
    "session_ssh_agent_logs_in_and_may_restart",
    "session_outlives_the_agent_of_the_machine",
    "session_git_asks_the_host_for_granted_servers",
    "session_x11_needs_no_cookie_inside",
    "session_sound_reaches_the_caller",
    "session_ends_with_the_machine",
    "logs_show_console_and_units",
    "caches_of_the_packages_are_there",
    "dry_run_changes_nothing",
    "bad_input_is_refused_with_a_reason",
    "a_held_lock_is_named",
    "delete_leaves_nothing",
];

/// What is shown of virtual machines by other cases, with fewer boots.
const SHOWN_BY: &[(&str, &[&str])] = &[
    (
        "qemu_a_machine_is_rebuilt_and_rolled_back",
        &[
            "rebuild_applies_the_change",
            "rollback_returns_to_the_first_generation",
        ],
    ),
    (
        "qemu_a_machine_is_off_and_on_with_its_files",
        &["stop_and_start_keep_files", "roots_made_inside_hold"],
    ),
    (
        "qemu_copies_and_moves_keep_every_file_of_a_running_machine",
        &[
            "a_duplicate_has_every_file_and_an_identity_of_its_own",
            "a_renamed_machine_has_everything_under_its_new_name",
        ],
    ),
];

/// The cases that kinds of runs leave out, with the reason. All others have to pass.
const LEFT_OUT: &[(&[&str], &str, Unable)] = &[
    (
        &["incus"],
        "entering_works_without_the_agent",
        Unable::NotYet("the error says how to start the agent again"),
    ),
    (
        &["qemu"],
        "entering_works_without_the_agent",
        Unable::Never("nothing of it can be entered; the error says to start it anew"),
    ),
    (
        &["qemu"],
        "the_store_cannot_be_unmounted",
        Unable::Never("mounts are its own kernel's; a machine's root can hide it from itself"),
    ),
    (
        &["qemu"],
        "secrets_cannot_be_unmounted",
        Unable::Never("mounts are its own kernel's"),
    ),
    (
        &["qemu"],
        "forbidden_system_calls_are_refused",
        Unable::Never("its kernel is its own"),
    ),
    (
        &["qemu"],
        "a_machine_may_see_only_its_closure",
        Unable::NotYet("the whole store is shared"),
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
        "session_kvm_is_there_once_it_is_granted",
        Unable::NotYet("no device of the host is led into it"),
    ),
    (
        &["qemu"],
        "session_wayland_reaches_the_caller",
        Unable::Never(
            "Wayland is shared memory, and only bytes pass between two kernels; X11 is passed on",
        ),
    ),
    (
        &["qemu"],
        "session_kvm_is_there_once_it_is_granted",
        Unable::NotYet("no virtual machine in a virtual machine"),
    ),
];

/// Why a case is left out in this kind of run; none: it has to pass.
pub fn left_out(kind: &str, case: &str) -> Option<Unable> {
    let kind = family(kind);
    let why = LEFT_OUT
        .iter()
        .find(|(kinds, c, _)| kinds.contains(&kind) && *c == case);
    let unseen =
        kind == "qemu" && !ON_VIRTUAL_MACHINES.contains(&case) && !case.starts_with("libvirt_");
    why.map(|(_, _, why)| *why)
        .or_else(|| unseen.then_some(UNSEEN))
}

const HEAD: &str = "# What each driver does\n\nGenerated from the conformance suite: a row is a case that runs against the real \
                    engine, and *works* that the suite fails when it does not pass.\n";

fn cell(kind: &str, case: &str) -> String {
    let shown = |(by, cases): &&(&str, &[&str])| {
        family(kind) == "qemu" && cases.contains(&case) && left_out(kind, by).is_none()
    };
    match left_out(kind, case) {
        Some(UNSEEN) if SHOWN_BY.iter().any(|s| shown(&s)) => "works".into(),
        why => why.map_or_else(|| "works".into(), Unable::text),
    }
}

/// The table, of all cases.
pub fn render(cases: &[&str]) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|(_, title)| *title).collect();
    let mut out = format!("{HEAD}\n| a machine | {} |\n", titles.join(" | "));
    out.push_str(&format!("|---|{}\n", "---|".repeat(COLUMNS.len())));
    for case in cases {
        let cells: Vec<String> = COLUMNS.iter().map(|(kind, _)| cell(kind, case)).collect();
        out.push_str(&format!(
            "| {} | {} |\n",
            case.replace('_', " "),
            cells.join(" | ")
        ));
    }
    out
}
