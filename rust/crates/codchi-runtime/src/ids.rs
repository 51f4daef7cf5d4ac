//! Ranges of user and group ids: what `/etc/subuid` lends to a caller, what is free for a machine of root.

use std::path::Path;

use codchi_fs::Context;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};

/// Ids that every machine has: 0 to 65535.
pub const COUNT: u32 = 65536;
/// Ids that a machine has where the host can lend as many: what follows its own is for containers and machines in it.
pub const NESTED: u32 = 4 * COUNT;
/// The caller's own id as the outer namespace shows it.
pub const CALLER: u32 = 65536;

/// One line of an id map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id in the namespace.
    pub inside: u32,
    /// First id in its parent.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// User and group ids of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<Extent>,
    /// Group ids.
    pub gids: Vec<Extent>,
}

/// The text that the kernel takes for a map.
pub fn map_text(extents: &[Extent]) -> String {
    extents.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect()
}

/// The extents of a map as the kernel shows it.
pub fn parse_map(text: &str) -> Vec<Extent> {
    let line = |l: &str| {
        let mut w = l.split_whitespace().map_while(|w| w.parse().ok());
        Some(Extent { inside: w.next()?, outside: w.next()?, count: w.next()? })
    };
    text.lines().filter_map(line).collect()
}

/// The ranges `(first, count)` that a file such as `/etc/subuid` gives to a user, by name or by number.
pub fn ranges_of(file: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let mut all = Vec::new();
    for line in file.lines() {
        let mut f = line.trim().split(':');
        let (Some(who), Some(first), Some(count)) = (f.next(), f.next(), f.next()) else { continue };
        if who != name && who.parse::<u32>() != Ok(uid) {
            continue;
        }
        if let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>())
            && count > 0
            && first.checked_add(count).is_some()
            && !all.contains(&(first, count))
        {
            all.push((first, count));
        }
    }
    all
}

/// Lays ranges after one another until [`COUNT`] ids are mapped; `None` when they do not suffice.
pub fn lay(ranges: &[(u32, u32)]) -> Option<Vec<Extent>> {
    let mut all = Vec::new();
    let mut next = 0;
    for (first, count) in ranges {
        if next == COUNT {
            break;
        }
        let count = (*count).min(COUNT - next);
        all.push(Extent { inside: next, outside: *first, count });
        next += count;
    }
    (next == COUNT).then_some(all)
}

/// What the same ranges have beyond that, up to [`NESTED`] ids in all, laid after the caller's own id.
pub fn lay_more(ranges: &[(u32, u32)]) -> Vec<Extent> {
    let (mut skip, mut next, mut all) = (COUNT, CALLER + 1, Vec::new());
    for (first, count) in ranges {
        let used = skip.min(*count);
        skip -= used;
        let count = (*count - used).min(CALLER + 1 + NESTED - COUNT - next);
        if count > 0 {
            all.push(Extent { inside: next, outside: first + used, count });
            next += count;
        }
    }
    all
}

/// The map of a machine inside an outer namespace whose map is `outer`: the same ids, except that the machine's
/// `user` is the caller when asked for. One extent never spans two of the parent's. The ids beyond the machine's own follow
/// the caller's in the outer namespace, and each other in the machine.
pub fn child_of(outer: &[Extent], user: Option<u32>) -> Vec<Extent> {
    let mut all = Vec::new();
    for e in outer.iter().filter(|e| e.inside < COUNT) {
        let end = e.inside + e.count;
        match user {
            Some(u) if (e.inside..end).contains(&u) => {
                if u > e.inside {
                    all.push(Extent { inside: e.inside, outside: e.inside, count: u - e.inside });
                }
                all.push(Extent { inside: u, outside: CALLER, count: 1 });
                if u + 1 < end {
                    all.push(Extent { inside: u + 1, outside: u + 1, count: end - u - 1 });
                }
            }
            _ => all.push(Extent { inside: e.inside, outside: e.inside, count: e.count }),
        }
    }
    let more = outer.iter().filter(|e| e.inside > CALLER);
    all.extend(more.map(|e| Extent { inside: e.inside - 1, outside: e.inside, count: e.count }));
    all
}

/// First ids that root tries for machines: above what distributions hand out, below what 32-bit signed ids lose.
const FIRST: u32 = 0x4000_0000;
/// End of them.
const LAST: u32 = 0x7000_0000;

/// Whether a range of root's is outside every range of `/etc/subuid` and `/etc/subgid` and every account.
pub fn is_free(base: u32, lent: &[(u32, u32)], accounts: &[u32]) -> bool {
    let end = base + NESTED;
    !lent.iter().any(|(f, c)| *f < end && base < f.saturating_add(*c))
        && !accounts.iter().any(|a| (base..end).contains(a))
}

/// Chooses the first of [`NESTED`] ids for a new machine of root: none in `taken` (the ranges of the other machines), none
/// lent to anyone.
///
/// The supervisor takes the lock of the range when the machine starts.
pub fn choose_base(taken: &[(u32, u32)]) -> Result<u32> {
    let mut lent = taken.to_vec();
    for file in ["/etc/subuid", "/etc/subgid"] {
        for line in codchi_fs::read_if_exists(file)?.unwrap_or_default().lines() {
            let mut f = line.split(':').skip(1);
            if let (Some(Ok(a)), Some(Ok(b))) = (f.next().map(str::parse), f.next().map(str::parse)) {
                lent.push((a, b));
            }
        }
    }
    let accounts: Vec<u32> = accounts()?;
    let slots = (LAST - FIRST) / NESTED;
    // Begins anywhere: machines of another home, which are not among `taken`, are then unlikely to have the same ids.
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .doing("draw a random number")?;
    let start = u32::from_ne_bytes(bytes) % slots;
    for i in 0..slots {
        let base = FIRST + ((start + i) % slots) * NESTED;
        if is_free(base, &lent, &accounts) {
            return Ok(base);
        }
    }
    Err(Error::Host { what: format!("no range of {NESTED} user ids is free"), hints: vec![] })
}

fn accounts() -> Result<Vec<u32>> {
    let text = codchi_fs::read_if_exists("/etc/passwd")?.unwrap_or_default();
    Ok(text.lines().filter_map(|l| l.split(':').nth(2)?.parse().ok()).collect())
}

/// Takes the locks of a range of root's, one for every 65536 ids; they are held until the result is dropped.
pub fn lock_range(base: u32, count: u32, who: &str) -> Result<Vec<codchi_fs::Lock>> {
    (base..base.saturating_add(count)).step_by(COUNT as usize).map(|part| lock_part(part, who)).collect()
}

fn lock_part(base: u32, who: &str) -> Result<codchi_fs::Lock> {
    let dir = Path::new("/run/lock/codchi/uid");
    codchi_fs::create_dir_all("/run/lock")?;
    for d in dir.parent().into_iter().chain([dir]) {
        // All users may write to /run/lock: what one of them has put there leads where that user likes.
        codchi_fs::create_private_dir(d)?;
        let s = rustix::fs::lstat(d).at("examine", d)?;
        let is_dir = rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir();
        if !is_dir || s.st_uid != rustix::process::geteuid().as_raw() || s.st_mode & 0o022 != 0 {
            return Err(Error::Host {
                what: format!("`{}` is not a folder of root's alone", d.display()),
                hints: vec![format!("no machine needs what is there: `rm -r {}`", d.display())],
            });
        }
    }
    match codchi_fs::Lock::try_take(dir.join(base.to_string()), who) {
        Ok(l) => Ok(l),
        Err(codchi_fs::LockError::File(e)) => Err(e.into()),
        Err(e) => Err(Error::Host {
            what: format!("the range of user ids at {base} is in use: {e}"),
            hints: vec!["two machines cannot run on the same ids; stop the other one".into()],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let file = "a:100:5\nb:200:6\n1000:300:7\n# a:1:1\na:nonsense:1\na:4294967295:2\n";
        assert_eq!(ranges_of(file, "a", 1000), [(100, 5), (300, 7)]);
        assert_eq!(ranges_of(file, "c", 7), []);
    }

    #[test]
    fn several_ranges_are_laid_after_one_another() {
        assert_eq!(lay(&[(100_000, 65535)]), None);
        let e = lay(&[(100_000, 65535), (300_000, 65536)]).unwrap();
        assert_eq!(e.len(), 2);
        assert_eq!(e[1], Extent { inside: 65535, outside: 300_000, count: 1 });
    }

    #[test]
    fn a_machine_gets_one_extent_per_extent_of_its_parent() {
        let mut outer = lay(&[(100_000, 1500), (300_000, 65536)]).unwrap();
        outer.push(Extent { inside: CALLER, outside: 1001, count: 1 });
        assert_eq!(map_text(&child_of(&outer, None)), "0 0 1500\n1500 1500 64036\n");
        assert_eq!(
            map_text(&child_of(&outer, Some(1000))),
            "0 0 1000\n1000 65536 1\n1001 1001 499\n1500 1500 64036\n"
        );
        assert_eq!(map_text(&child_of(&outer, Some(0))), "0 65536 1\n1 1 1499\n1500 1500 64036\n");
    }

    #[test]
    fn what_is_lent_beyond_a_machines_own_ids_follows_them() {
        let ranges = [(100_000, 60_000), (300_000, 10_000), (500_000, 1_000_000)];
        let mut outer = lay(&ranges).unwrap();
        outer.push(Extent { inside: CALLER, outside: 1001, count: 1 });
        outer.extend(lay_more(&ranges));
        assert_eq!(
            map_text(&child_of(&outer, None)),
            "0 0 60000\n60000 60000 5536\n65536 65537 4464\n70000 70001 192144\n"
        );
        assert_eq!(outer.last().unwrap().outside, 500_000);
        assert_eq!(lay_more(&[(100_000, 65536)]), []);
    }

    #[test]
    fn a_free_range_touches_nobody_elses() {
        assert!(is_free(FIRST, &[(100_000, 65536), (FIRST + NESTED, 1)], &[0, 1000]));
        assert!(!is_free(FIRST, &[(FIRST + NESTED - 1, 1)], &[]));
        assert!(!is_free(FIRST, &[(FIRST - 1, 2)], &[]));
        assert!(!is_free(FIRST, &[], &[FIRST + 9]));
    }
}
