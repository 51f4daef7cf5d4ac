//! What a command is about to change, as data: shown by `--dry-run`, printed as JSON, then carried out.

use serde::{Deserialize, Serialize};

use crate::name::MachineName;

/// A plan: the steps of one command on one machine, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan<S> {
    /// Schema version of this document.
    pub version: u32,
    /// The command, such as `init`.
    pub command: String,
    /// The machine it concerns.
    pub machine: MachineName,
    /// The steps. Each is idempotent and knows its inverse.
    pub steps: Vec<S>,
}

/// The schema version of [`Plan`].
pub const PLAN_VERSION: u32 = 1;
