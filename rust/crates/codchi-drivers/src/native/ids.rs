//! The ids of a machine of root.

use codchi_core::machine::{IDS, IdRange};
use codchi_runtime::{ids, outer};

use crate::Result;

/// A range for a new machine of root: not one of `taken`, and not used by a machine that runs, whosever it is. The machines of
/// others have the ids that are lent to them.
pub fn choose(taken: &[IdRange]) -> Result<Option<IdRange>> {
    if !outer::is_root() {
        return Ok(None);
    }
    let mut taken: Vec<u32> = taken.iter().map(|r| r.base).collect();
    loop {
        let base = ids::choose_base(&taken)?;
        match ids::lock_base(base, "codchi init") {
            Ok(_free) => return Ok(Some(IdRange { base, count: IDS })),
            Err(_) if taken.len() < 1000 => taken.push(base),
            Err(e) => return Err(e.into()),
        }
    }
}
