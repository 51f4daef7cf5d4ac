//! Many machines, copies and exports.

use std::path::PathBuf;

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
    // What changed in the second before may change again unseen, and is read each time.
    std::thread::sleep(std::time::Duration::from_secs(3));
    timed(host.codchi(&["status"]))?;
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
    fill(host, large, "head -c 512M /dev/urandom > /home/large")?;
    let file = root(host, large).join("home/large");
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
    fill(
        host,
        name,
        "cd /home && head -c 512M /dev/urandom > large && head -c 4000 /dev/zero | tr '\\0' x > ~/small &&
         for folder in $(seq 100); do mkdir small-$folder; for file in $(seq 100); do cp ~/small small-$folder/$file; done; done",
    )?;
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

/// Has root of a machine write files, and stops it.
fn fill(host: &Host, machine: &str, script: &str) -> Result<(), Error> {
    timed(host.codchi(&["exec", "-u", "root", machine, "--", "sh", "-c", script]))?;
    timed(host.codchi(&["stop", machine])).map(drop)
}
