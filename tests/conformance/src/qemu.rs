//! What is shown of virtual machines in a way that costs them no further boot.

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::host::Host;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[(
    "qemu_a_machine_is_rebuilt_and_rolled_back",
    rebuilt_and_rolled_back,
)];

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
