//! What is shown of virtual machines with as few boots as can be.

use libtest_mimic::Failed;

use crate::cases::{Case, build};
use crate::host::Host;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    (
        "qemu_a_machine_is_rebuilt_and_rolled_back",
        rebuilt_and_rolled_back,
    ),
    ("qemu_a_machine_is_off_and_on_with_its_files", off_and_on),
];

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), Failed> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got:?} where {wanted:?} was expected").into())
}

fn rebuilt_and_rolled_back(h: &Host) -> Result<(), Failed> {
    let boot = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    let project = h.home.join("project");
    codchi_fs::rename(project.join("module.nix"), project.join("module-one.nix"))?;
    codchi_fs::write(
        project.join("module.nix"),
        "{ imports = [ ./module-one.nix ]; environment.etc.second.text = \"two\"; }\n",
    )?;
    h.commit(&project)?;
    h.codchi(&["rebuild", "conf"])?.ok()?;
    expect("file", h.sh("conf", "cat /etc/second")?, "two".into())?;
    h.codchi(&["rollback", "conf"])?.ok()?;
    let gone = "test ! -e /etc/second && echo gone";
    expect("file", h.sh("conf", gone)?, "gone".into())?;
    expect(
        "boot",
        h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?,
        boot,
    )
}

fn off_and_on(h: &Host) -> Result<(), Failed> {
    h.sh("conf", "echo kept > ~/kept && sudo chown 1234:99 ~/kept")?;
    h.sh(
        "conf",
        &format!("nix-build -o ~/result -E {}", build("linked")),
    )?;
    h.codchi(&["stop", "conf"])?.ok()?;
    h.codchi(&["gc"])?.ok()?;
    let status = h.status("conf")?;
    expect("state", status["state"].as_str(), Some("stopped"))?;
    expect("leader", status["leader"].as_u64(), None)?;
    h.codchi(&["stop", "conf"])?.ok()?;
    // exec starts a stopped machine.
    let file = h.sh("conf", "cat ~/kept; stat -c %u:%g ~/kept")?;
    expect("file", file, "kept\n1234:99".into())?;
    let held = h.sh("conf", "cat ~/result; rm ~/result")?;
    expect("what a result link holds", held, "sandboxed".into())
}
