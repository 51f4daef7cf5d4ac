//! Faithful copies of file trees.
//!
//! A copy has the owners, modes, times, ACLs, extended attributes, file capabilities, hard links and holes of what it is a copy
//! of. Nothing is opened through a link, and nothing outside the tree is. What cannot be copied (a device node where the
//! kernel does not let one be made) is told in the [`Report`], never passed over.
//!
//! Ids are those that this process sees: in a user namespace the kernel maps owners, ACLs and file capabilities alike.

mod acl;
mod compress;
mod copy;
mod error;
mod header;
mod meta;
mod pack;
mod tree;
mod unpack;

use serde::{Deserialize, Serialize};

pub use compress::{Compression, decompress};
pub use copy::copy;
pub use error::{FilesError, Result};
pub use pack::{Tree, Without, pack};
pub use unpack::{Most, Pick, Wish, unpack};

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Files, folders, links: everything with a name.
    pub entries: u64,
    /// Bytes of content, holes left out.
    pub bytes: u64,
}

/// What a copy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was copied.
    pub tally: Tally,
    /// How many things could not be.
    pub lost: u64,
    /// The first [`NAMED`] of them: name and reason.
    pub named: Vec<String>,
}

/// How many things that could not be copied are named.
pub const NAMED: usize = 20;

impl Report {
    fn lose(&mut self, path: &[u8], why: &str) {
        self.lost += 1;
        if self.named.len() < NAMED {
            let shown = codchi_core::text::printable_line(&String::from_utf8_lossy(path));
            self.named.push(format!("`{shown}`: {why}"));
        }
    }
}

/// How the ids of a machine are called in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// An id that stands for an account of the machine: how it is called here, and the account's user and group.
    pub standing_for: Option<(u32, u32, u32)>,
}

/// Ids that a machine has: 0 to this.
const LAST: u32 = 65_535;
/// Who owns what nobody of a machine owns.
const NOBODY: u32 = 65_534;

impl Ids {
    /// What a user that is seen here is in the machine.
    pub(crate) fn user(&self, id: u32) -> u32 {
        self.inside(id, |(_, user, _)| user)
    }

    /// What a group that is seen here is in the machine.
    pub(crate) fn group(&self, id: u32) -> u32 {
        self.inside(id, |(_, _, group)| group)
    }

    fn inside(&self, id: u32, account: fn((u32, u32, u32)) -> u32) -> u32 {
        match self.standing_for {
            Some(s) if s.0 == id => account(s),
            _ if id <= LAST => id,
            _ => NOBODY,
        }
    }
}

/// An id in a tar as one of a machine, and whether it is one.
pub(crate) fn of_machine(id: u64) -> (u32, bool) {
    match u32::try_from(id) {
        Ok(id) if id <= LAST => (id, true),
        _ => (NOBODY, false),
    }
}

/// Called now and then while a copy is made; when it answers no, the copy ends with [`FilesError::Interrupted`].
pub type Watch<'a> = &'a mut dyn FnMut(&Tally) -> bool;
