//! Switching a running machine to another system.

use std::path::Path;
use std::time::Duration;

use codchi_core::name::MachineName;

use super::failed;
use crate::agent::{self, CaptureLimits, ExecRequest, Tty};
use crate::{Result, Switched, UnitChange};

/// How long a switch may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A transient unit does the switch, so that this program's end cannot cut it in half; its output goes to a file, so that
/// nobody needs to listen. One that an earlier call began is waited for. It is no oneshot: for one that fails, systemd-run gives 1
/// instead of the status that tells how the switch ended.
const SCRIPT: &str = r#"
unit=codchi-switch.service
log=/run/codchi-switch.log
while systemctl is-active --quiet "$unit" || [ "$(systemctl show -P ActiveState "$unit")" = activating ]; do sleep 0.1; done
systemctl reset-failed "$unit" 2>/dev/null || true
: > "$log"
systemd-run --quiet --collect --wait --no-ask-password --service-type=exec --unit="$unit" \
  -p StandardOutput="append:$log" -p StandardError="append:$log" -E PATH -E LOCALE_ARCHIVE \
  "$1/bin/switch-to-configuration" switch
status=$?
cat "$log"
exit "$status"
"#;

/// Switches, and tells what became of it.
pub fn switch(agent_dir: &Path, machine: &MachineName, toplevel: &str) -> Result<Switched> {
    let request = ExecRequest {
        argv: ["sh", "-c", SCRIPT, "sh", toplevel].iter().map(Into::into).collect(),
        user: Some("root".into()),
        cwd: Some("/".into()),
        tty: Tty::Never,
        ..ExecRequest::default()
    };
    let limits = CaptureLimits { timeout: PATIENCE, ..CaptureLimits::default() };
    let done = agent::capture(agent_dir, request, b"", limits).map_err(|e| failed(machine, &e))?;
    let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    Ok(Switched { status: i32::from(done.status), units: units(&output), output })
}

/// The units that `switch-to-configuration` says it touched.
fn units(output: &str) -> Vec<UnitChange> {
    let mut found: Vec<UnitChange> = Vec::new();
    for line in output.lines() {
        let Some((before, list)) = line.trim_start_matches("warning: ").split_once(": ") else { continue };
        if !before.contains("following") || !before.contains("units") {
            continue;
        }
        let action = match before.split_whitespace().next() {
            Some("stopping") => "stopped",
            Some("starting") => "started",
            Some("restarting") => "restarted",
            Some("reloading") => "reloaded",
            Some("the") if before.contains("started") => "started",
            Some("the") if before.contains("failed") => "failed",
            _ => continue,
        };
        for unit in list.split(", ").map(str::trim).filter(|u| !u.is_empty()) {
            // Stopped and started again is one thing for a person.
            if let Some(known) = found.iter_mut().find(|k| k.unit == unit) {
                known.action = match (known.action.as_str(), action) {
                    ("stopped", "started") => "restarted".into(),
                    (_, other) => other.into(),
                };
            } else {
                found.push(UnitChange { action: action.into(), unit: unit.into() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_a_switch_touched_are_read_from_its_words() {
        let out = "stopping the following units: a.service, b.service\nactivating the configuration...\n\
                   restarting the following units: c.service\nstarting the following units: a.service\n\
                   the following new units were started: d.timer\nwarning: the following units failed: e.service\n";
        let got: Vec<(String, String)> = units(out).into_iter().map(|u| (u.action, u.unit)).collect();
        let want = [
            ("restarted", "a.service"),
            ("stopped", "b.service"),
            ("restarted", "c.service"),
            ("started", "d.timer"),
            ("failed", "e.service"),
        ];
        assert_eq!(got, want.map(|(a, u)| (a.to_string(), u.to_string())));
    }
}
