//! Instances whose files are worked on from outside: held still, or up without doing anything.

use std::time::Duration;

use codchi_core::name::MachineName;
use serde_json::{Value, json};

use super::api::Api;
use super::{attendant, did_not, path};
use crate::{DriverError, Host, Result};

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
pub struct Still<'a>(Option<(&'a Api, String)>);

impl<'a> Still<'a> {
    /// Holds it still.
    pub fn new(api: &'a Api, instance: &Value, machine: &MachineName) -> Result<Still<'a>> {
        if instance["status"] != "Running" {
            return Ok(Still(None));
        }
        let at = format!("{}/state", path(machine));
        let body = json!({ "action": "freeze", "timeout": 30 });
        api.change("PUT", &at, &body)
            .map_err(|e| did_not(api.dialect(), e, format!("hold `{machine}` still")))?;
        Ok(Still(Some((api, at))))
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Some((api, at)) = &self.0 {
            let _ = api.change("PUT", at, &json!({ "action": "unfreeze", "timeout": 30 }));
        }
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
        // Together with what else the instance has; its next start brings all of it back.
        let mut instance = api.get(&path(machine)).map_err(not)?;
        instance["config"]["raw.lxc"] = json!(NOTHING);
        instance["config"]["security.privileged"] = json!("false");
        let devices = json!({
            "root": instance["devices"]["root"],
            "bin": { "type": "disk", "source": host.bin, "path": "/dev/.codchi/bin", "readonly": "true" },
        });
        instance["devices"] = devices;
        api.change("PUT", &path(machine), &instance).map_err(not)?;
        let start = json!({ "action": "start", "timeout": 60 });
        api.change("PUT", &format!("{}/state", path(machine)), &start).map_err(not)?;
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

/// Ends what a command that was killed left up.
pub fn end_hold(api: &Api, instance: &Value, machine: &MachineName) -> Result<()> {
    if instance["status"] == "Frozen" {
        let body = json!({ "action": "unfreeze", "timeout": Duration::from_secs(30).as_secs() });
        api.change("PUT", &format!("{}/state", path(machine)), &body)
            .map_err(|e| did_not(api.dialect(), e, format!("let `{machine}` go on")))?;
    }
    if is_held(instance) && instance["status"] != "Stopped" {
        attendant::stop(api, machine.as_str(), true)
            .map_err(|e| DriverError::Stop { machine: machine.clone(), reason: e.to_string() })?;
    }
    Ok(())
}
