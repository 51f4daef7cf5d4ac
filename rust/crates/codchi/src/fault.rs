//! Points where a test kills this program (feature `fault-injection`).

/// Kills this process when `CODCHI_FAULT` names this point: `before:N` or `after:N`, N counting the steps of a command from 0.
#[cfg(feature = "fault-injection")]
pub fn point(when: &str, step: usize) {
    if std::env::var("CODCHI_FAULT").is_ok_and(|f| f == format!("{when}:{step}")) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing: this program is not built for that test.
#[cfg(not(feature = "fault-injection"))]
pub fn point(_: &str, _: usize) {}
