//! Many machines, copies and exports.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, median, ms, timed};

/// How many machines `status` is measured with.
const MACHINES: usize = 50;

/// How often the long ones are repeated.
const RUNS: usize = 3;

/// `codchi status` of many machines that do not run.
pub fn many(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let first = "many-1";
    timed(host.init(first, &["--no-start"])?)?;
    for n in 2..=MACHINES {
        timed(host.copy(first, &format!("many-{n}")))?;
    }
    let ours = || host.codchi(&["status"]);
    let floor = || host.codchi(&["--version"]);
    let times = in_turns(&[&ours, &floor], runs)?;
    Ok(vec![Figure {
        name: format!("codchi status of {MACHINES} machines"),
        ours: times[0],
        beside: Some(("--version".into(), times[1])),
        unit: Unit::Ms,
        bound: Bound::Most(10.0),
    }])
}

/// `codchi duplicate` of a small and of a large machine: where the file system shares blocks, size costs nothing.
pub fn duplicate(host: &mut Host) -> Result<Vec<Figure>, Error> {
    let (small, large) = ("copied-small", "copied-large");
    timed(host.init(small, &["--no-start"])?)?;
    timed(host.copy(small, large))?;
    let file = root(host, large).join("home/large");
    fill(host, &file, 512)?;
    let clone = host.scratch("clone");
    let mut shares = host.command("cp");
    shares.arg("--reflink=always").arg(&file).arg(&clone);
    let shared = timed(shares).is_ok();
    codchi_fs::remove_if_exists(&clone)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (from, times) in [small, large].iter().zip(&mut times) {
            times.push(ms(timed(host.copy(from, "copy"))?));
            timed(host.codchi(&["delete", "copy", "--yes"]))?;
        }
    }
    let [small, large] = times.map(median);
    let (name, bound) = match shared {
        true => ("codchi duplicate of 512 MiB, shared", Bound::Times(1.25)),
        false => ("codchi duplicate of 512 MiB, copied", Bound::None),
    };
    Ok(vec![Figure {
        name: name.into(),
        ours: large,
        beside: Some(("an empty one".into(), small)),
        unit: Unit::Ms,
        bound,
    }])
}

/// `codchi tar` beside `tar` of the same folder with all that the first keeps, too.
pub fn export(host: &mut Host) -> Result<Vec<Figure>, Error> {
    let name = "exported";
    timed(host.init(name, &["--no-start"])?)?;
    let home = root(host, name).join("home");
    fill(host, &home.join("large"), 512)?;
    for folder in 0..100 {
        let folder = home.join(format!("small-{folder}"));
        codchi_fs::create_dir_all(&folder)?;
        for file in 0..100 {
            codchi_fs::write(folder.join(file.to_string()), vec![b'x'; 4000])?;
        }
    }
    let (ours, theirs) = (host.scratch("ours.tar"), host.scratch("theirs.tar"));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        times[0].push(ms(timed(host.codchi(&[
            "tar",
            name,
            &ours.to_string_lossy(),
        ]))?));
        let mut tar = host.command("tar");
        tar.args(["--xattrs", "--acls", "--sparse", "--one-file-system", "-cf"])
            .arg(&theirs)
            .arg("-C")
            .arg(root(host, name))
            .arg(".");
        times[1].push(ms(timed(tar)?));
        codchi_fs::remove_file(&ours)?;
        codchi_fs::remove_file(&theirs)?;
    }
    let [ours, theirs] = times.map(median);
    Ok(vec![Figure {
        name: "codchi tar of 552 MB, 10,001 files".into(),
        ours,
        beside: Some(("tar".into(), theirs)),
        unit: Unit::Ms,
        // At least 0.8 of its speed.
        bound: Bound::Times(1.25),
    }])
}

fn root(host: &Host, name: &str) -> PathBuf {
    host.data().join("machines").join(name).join("root")
}

/// Writes a file of so many MiB that holds no zeros.
fn fill(host: &Host, file: &Path, mib: u32) -> Result<(), Error> {
    let mut dd = host.command("dd");
    dd.args(["if=/dev/urandom", "bs=1M", "status=none"])
        .arg(format!("count={mib}"))
        .arg(format!("of={}", file.display()));
    timed(dd).map(drop)
}
