//! The ids of a machine of root.

use codchi_core::machine::IdRange;
use codchi_runtime::{ids, outer};

use crate::Result;

/// The range of ids of a new machine of root: not in `taken`, and not used by a machine that runs, whosever it is. None without
/// the host's root: machines then have ids that are lent to the caller.
pub fn choose(taken: &[IdRange]) -> Result<Option<IdRange>> {
    if !outer::is_privileged() {
        return Ok(None);
    }
    let mut taken: Vec<(u32, u32)> = taken.iter().map(|r| (r.base, r.count)).collect();
    loop {
        let range = IdRange { base: ids::choose_base(&taken)?, count: ids::NESTED };
        match ids::lock_range(range.base, range.count, "codchi init") {
            Ok(_free) => return Ok(Some(range)),
            Err(_) if taken.len() < 1000 => taken.push((range.base, range.count)),
            Err(e) => return Err(e.into()),
        }
    }
}
