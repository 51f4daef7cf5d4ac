//! Whether a running machine works: its agent answers, its service manager runs, its units do not fail.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use codchi_core::name::MachineName;
use codchi_core::progress::Event;
use codchi_core::status::State;
use codchi_core::text;
use codchi_drivers::{Driver, DriverError, Exec, Host};

/// The state of the service manager, then the units that failed, a line each. A service that is about to be started again counts
/// when it ended with a failure, as for NixOS' own switch.
const SCRIPT: &str = r#"
exec 2>/dev/null
systemctl is-system-running
systemctl list-units --plain --no-legend --full --no-pager --state=failed,auto-restart |
while read -r unit _ _ sub _; do
  [ "$sub" != auto-restart ] || [ "$(systemctl show -P ExecMainStatus -- "$unit")" != 0 ] || continue
  printf '%s\n' "$unit"
done
"#;
/// How long a machine may not answer: its service manager starts itself anew in a switch.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long services that were just started have to show that they do not end at once.
const SETTLE: Duration = Duration::from_millis(500);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What its service manager says of itself, such as `running` or `degraded`.
    pub manager: String,
    /// Units that failed.
    pub failed: BTreeSet<String>,
}

/// What is wrong with a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ill {
    /// For people.
    pub why: String,
    /// Units that failed.
    pub units: Vec<String>,
}

/// How a running machine is. An error means that it does not answer.
pub fn look(driver: &dyn Driver, host: &Host, machine: &MachineName) -> Result<Health, DriverError> {
    let exec = Exec {
        argv: ["sh", "-c", SCRIPT].iter().map(Into::into).collect(),
        user: Some("root".into()),
        cwd: Some("/".into()),
        tty: Some(false),
        ..Exec::default()
    };
    let (_, said) = driver.capture(host, machine, &exec)?;
    Ok(read(&said))
}

fn read(said: &str) -> Health {
    let mut lines = said.lines().map(str::trim).filter(|l| !l.is_empty());
    let manager = lines.next().unwrap_or_default().to_owned();
    Health { manager, failed: lines.map(str::to_owned).collect() }
}

/// What keeps a machine that was just switched from being well; none: nothing does. Units in `before` had failed already, and
/// `touched` says whether services were started that may yet fail.
pub fn confirm(
    driver: &dyn Driver,
    host: &Host,
    machine: &MachineName,
    before: &[String],
    touched: bool,
) -> Option<Ill> {
    host.progress.report(Event::Phase("looking at its units"));
    let began = Instant::now();
    loop {
        if !driver.state(host, machine).is_ok_and(|r| r.state == State::Running) {
            return Some(Ill { why: "it went down".into(), units: Vec::new() });
        }
        match look(driver, host, machine) {
            Ok(health) => match judge(&health, before) {
                Some(ill) if ill.units.is_empty() && began.elapsed() < PATIENCE => {}
                Some(ill) => return Some(ill),
                None if !touched || began.elapsed() >= SETTLE => return None,
                None => {}
            },
            Err(e) if began.elapsed() >= PATIENCE => {
                return Some(Ill { why: text::printable(&e.to_string()), units: Vec::new() });
            }
            Err(_) => {}
        }
        std::thread::sleep(AGAIN);
    }
}

fn judge(health: &Health, before: &[String]) -> Option<Ill> {
    let units: Vec<String> = health.failed.iter().filter(|u| !before.contains(u)).cloned().collect();
    if !units.is_empty() {
        let named: Vec<String> =
            units.iter().take(5).map(|u| format!("`{}`", text::printable_line(u))).collect();
        let more = units.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Some(Ill { why: format!("{}{more} failed", named.join(", ")), units });
    }
    // Late in a first boot it may be `starting`; `degraded` is told by the units.
    let well = ["running", "degraded", "starting"].contains(&health.manager.as_str());
    (!well).then(|| Ill {
        why: format!("its service manager says `{}`", text::printable_line(&health.manager)),
        units,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_units_that_did_not_fail_before_make_it_ill() {
        let health = read("degraded\na.service\nb.service\n");
        assert_eq!(health.manager, "degraded");
        assert_eq!(judge(&health, &["a.service".into(), "b.service".into()]), None);
        let ill = judge(&health, &["a.service".into()]).unwrap();
        assert_eq!((ill.why.as_str(), ill.units), ("`b.service` failed", vec!["b.service".to_string()]));
        assert_eq!(judge(&read("running\n"), &[]), None);
    }

    #[test]
    fn a_service_manager_that_gives_up_makes_it_ill() {
        assert!(judge(&read("maintenance\n"), &[]).unwrap().why.contains("`maintenance`"));
        assert!(judge(&read(""), &[]).is_some());
    }
}
