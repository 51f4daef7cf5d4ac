//! Faithful copies of file trees.
//!
//! A copy has the owners, modes, times, ACLs, extended attributes, file capabilities, hard links and holes of what it is a copy
//! of. Nothing is opened through a link, and nothing outside the tree is. What cannot be copied (a device node where the
//! kernel does not let one be made) is told in the [`Report`], never passed over.
//!
//! Ids are those that this process sees: in a user namespace the kernel maps owners, ACLs and file capabilities alike.

mod copy;
mod error;
mod meta;
mod tree;

use serde::{Deserialize, Serialize};

pub use copy::copy;
pub use error::{FilesError, Result};

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

/// Called now and then while a copy is made; when it answers no, the copy ends with [`FilesError::Interrupted`].
pub type Watch<'a> = &'a mut dyn FnMut(&Tally) -> bool;
