//! Instances whose files are worked on from outside: held still, or up without doing anything.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use codchi_core::name::MachineName;
use codchi_fs::{Lock, LockError};
use serde_json::{Value, json};

use super::api::Api;
use super::{attendant, did_not, mark, path};
use crate::{DriverError, Host, Result, supervised};

/// How long another command may take that holds the same machine still, or lets it go on.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is started in an instance that does nothing.
const NOTHING: &str = "lxc.init.cmd = /dev/.codchi/bin/codchi-boot --hold";

/// Whether an instance is up to do nothing.
pub fn is_held(instance: &Value) -> bool {
    instance["config"]["raw.lxc"] == NOTHING
}

/// PID 1 of an instance that runs.
pub fn leader(api: &Api, machine: &MachineName) -> Result<i32> {
    let state = api
        .get(&format!("{}/state", path(machine)))
        .map_err(|e| did_not(api.dialect(), e, format!("look at the instance `{machine}`")))?;
    attendant::pid(&state).ok_or_else(|| DriverError::NotRunning(machine.clone()))
}

/// A running machine that is held still until this is dropped; one that is off is left so.
pub struct Still<'a>(Option<(&'a Api, MachineName, Note)>);

impl<'a> Still<'a> {
    /// Holds it still.
    pub fn new(api: &'a Api, host: &Host, instance: &Value, machine: &MachineName) -> Result<Still<'a>> {
        if instance["status"] != "Running" {
            return Ok(Still(None));
        }
        let note = Note::make(host, machine)?;
        let still = Still(Some((api, machine.clone(), note)));
        api.set_state(machine.as_str(), "freeze", false)
            .map_err(|e| did_not(api.dialect(), e, format!("hold `{machine}` still")))?;
        Ok(still)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Some((api, machine, note)) = self.0.take()
            && api.set_state(machine.as_str(), "unfreeze", false).is_ok()
        {
            note.remove();
        }
    }
}

/// Lets a machine go on that a command which was killed left still. Costs no more than a look where there is none.
pub fn thaw(api: impl FnOnce() -> Result<Api>, host: &Host, machine: &MachineName) -> Result<()> {
    let file = Note::path(host, machine);
    if file.symlink_metadata().is_err() {
        return Ok(());
    }
    let Some(note) = Note::take(file)? else { return Ok(()) };
    let api = api()?;
    let state = api
        .get(&format!("{}/state", path(machine)))
        .map_err(|e| did_not(api.dialect(), e, format!("look at the instance `{machine}`")))?;
    if state["status"] == "Frozen" {
        go_on(&api, machine)?;
    }
    note.remove();
    Ok(())
}

/// Says on this host that a machine is held still, by a file that is locked for as long as whoever does that lives.
struct Note {
    path: PathBuf,
    _lock: Lock,
}

impl Note {
    fn path(host: &Host, machine: &MachineName) -> PathBuf {
        host.dirs.machine_runtime(machine).join("still")
    }

    fn make(host: &Host, machine: &MachineName) -> Result<Note> {
        supervised::prepare(host, machine)?;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(note) = Note::take(Note::path(host, machine))? {
                return Ok(note);
            }
            if Instant::now() > until {
                return Err(DriverError::Helper {
                    what: format!("hold `{machine}` still"),
                    reason: "another command does that already".into(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The note, unless somebody who lives has it.
    fn take(path: PathBuf) -> Result<Option<Note>> {
        match Lock::try_take(&path, &format!("process {}", std::process::id())) {
            Ok(lock) => Ok(Some(Note { path, _lock: lock })),
            Err(LockError::Held { .. }) => Ok(None),
            Err(LockError::File(e)) => Err(e.into()),
        }
    }

    fn remove(self) {
        // One that stays costs the next command a question.
        let _ = codchi_fs::remove_if_exists(&self.path);
    }
}

/// An instance that is up and does nothing, until this is dropped: its files are there, and its ids.
pub struct Hold<'a> {
    api: &'a Api,
    machine: MachineName,
    leader: i32,
}

impl<'a> Hold<'a> {
    /// Starts one that is off.
    pub fn new(api: &'a Api, host: &Host, machine: &MachineName) -> Result<Hold<'a>> {
        let not = |e| did_not(api.dialect(), e, format!("make the files of `{machine}` accessible"));
        // In place of what else Codchi gave the instance, which its next start brings back. What a person added stays.
        let mut instance = api.get(&path(machine)).map_err(not)?;
        instance["config"]["raw.lxc"] = json!(NOTHING);
        instance["config"]["security.privileged"] = json!("false");
        let mut devices = mark::devices_of_others(&instance);
        devices.insert(
            "bin".into(),
            json!({ "type": "disk", "source": host.bin, "path": "/dev/.codchi/bin", "readonly": "true" }),
        );
        instance["devices"] = Value::Object(devices);
        api.change("PUT", &path(machine), &instance).map_err(not)?;
        api.set_state(machine.as_str(), "start", false).map_err(not)?;
        let leader = leader(api, machine)?;
        Ok(Hold { api, machine: machine.clone(), leader })
    }

    /// Its PID 1.
    pub fn leader(&self) -> i32 {
        self.leader
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let _ = attendant::stop(self.api, self.machine.as_str(), true);
    }
}

/// Ends what a command that was killed left up, and gives the instance as it is then.
pub fn end_hold(api: &Api, instance: Value, machine: &MachineName) -> Result<Value> {
    let (frozen, held) =
        (instance["status"] == "Frozen", is_held(&instance) && instance["status"] != "Stopped");
    if !frozen && !held {
        return Ok(instance);
    }
    if frozen {
        go_on(api, machine)?;
    }
    if held {
        attendant::stop(api, machine.as_str(), true)
            .map_err(|e| did_not(api.dialect(), e, format!("stop `{machine}`")))?;
    }
    api.get(&path(machine))
        .map_err(|e| did_not(api.dialect(), e, format!("look at the instance `{machine}`")))
}

fn go_on(api: &Api, machine: &MachineName) -> Result<()> {
    api.set_state(machine.as_str(), "unfreeze", false)
        .map_err(|e| did_not(api.dialect(), e, format!("let `{machine}` go on")))
}
