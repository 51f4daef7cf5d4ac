//! Clusters of an engine: machines are on the member whose socket this is, since what they mount is of this host.

use codchi_core::name::MachineName;
use serde_json::Value;

use super::api::{Api, ApiError};
use super::dialect::Dialect;
use super::{did_not, mark};
use crate::{DriverError, Result};

/// What the cluster calls this member; none where there is no cluster.
pub fn here(api: &Api) -> Result<Option<String>, ApiError> {
    let server = api.get("/1.0")?;
    Ok(named(&server).map(String::from))
}

/// What the cluster calls the member that says this of itself.
pub fn named(server: &Value) -> Option<&str> {
    let environment = &server["environment"];
    (environment["server_clustered"] == true).then(|| environment["server_name"].as_str()).flatten()
}

/// The path by which something is made on a member, and not on the one that has least to do.
pub fn targeted(path: &str, member: Option<&str>) -> String {
    match member {
        Some(member) => format!("{path}?target={member}"),
        None => path.into(),
    }
}

/// Fails when somebody moved an instance to another member.
pub fn check(api: &Api, instance: &Value, machine: &MachineName) -> Result<()> {
    // Without a cluster, nothing is asked.
    let Some(there) = mark::member(instance) else { return Ok(()) };
    let here = here(api).map_err(|e| did_not(api.dialect(), e, "look at the cluster".into()))?;
    match elsewhere(Some(there), here.as_deref()) {
        None => Ok(()),
        Some((there, here)) => Err(DriverError::Host {
            what: away(api.dialect(), machine, there),
            hints: vec![format!(
                "`{} move {machine} --target {here}` brings it back, when it is stopped",
                api.dialect().client
            )],
        }),
    }
}

/// Both members, where they are two.
pub fn elsewhere<'a>(there: Option<&'a str>, here: Option<&'a str>) -> Option<(&'a str, &'a str)> {
    there.zip(here).filter(|(there, here)| there != here)
}

/// That an instance is on another member, for people.
pub fn away(dialect: &Dialect, machine: &MachineName, there: &str) -> String {
    format!("the instance of `{machine}` is on the member `{there}` of the {} cluster now", dialect.title)
}
