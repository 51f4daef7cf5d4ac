//! An export on a computer without Codchi: its files on a disk, its flake built without a driver, booted by QEMU alone.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::cases::{Case, same};
use crate::host::{Host, run};

/// The case. It makes and deletes a machine of its own.
pub const ALL: &[Case] = &[(
    "qemu_an_export_boots_without_a_driver",
    boots_without_a_driver,
)];

/// How long the machine may take; its processor may be emulated on a host that has others to run.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Modules of the kernel that a disk takes, where they are no part of it.
const MODULES: &str = "virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk crc16 \
                       crc32c_generic libcrc32c mbcache jbd2 ext4 overlay";

/// What a person does: the export to a disk, its inputs to the store, its system built and put beside it.
const INSTALL: &str = r#"set -eu
codchi=$1 fixture=$2
rm -rf root; mkdir -m 755 root
tar -xpf plain.tar --xattrs --xattrs-include='*' --acls --numeric-owner -C root
for dir in dev proc sys run nix/store; do mkdir -p root/$dir; done
! grep -rqs exported-secret root
cd root/etc/nixos
cp "$fixture"/*configuration.nix .
cat > install <<'END'
set -eu
for input in inputs/*/*; do
  [ "$(nix-store --add "$input")" = "/nix/store/$(basename "$(dirname "$input")")-${input##*/}" ]
done
system=$(nix build --offline --no-link --print-out-paths --extra-experimental-features 'nix-command flakes' \
  --option substitute false "path:$PWD#nixosConfigurations.nixos.config.system.build.toplevel")
cp -a --reflink=auto $(nix-store -qR "$system") ../../nix/store/
cp -L "$(ls -d "$system"/kernel/boot/vmlinuz-*)" ../../../plain-kernel
rm -rf ../../../plain-modules; mkdir ../../../plain-modules
for name in $MODULES; do
  find -L "$system"/kernel/usr/lib/modules "$system"/kernel/lib/modules -name "$name.ko*" -o -name "$(echo $name | tr _ -).ko*" 2>/dev/null |
    head -n 1 | xargs -r cp -Lt ../../../plain-modules
done
echo "$system"
END
"$codchi" store shell -- sh install
rm install
"#;

fn boots_without_a_driver(h: &Host) -> Result<(), Failed> {
    let source = h.checkout("tests/fixtures/driverless", "driverless")?;
    let source = source.to_string_lossy();
    h.codchi(&["init", "plain", &source, "--driver", "native"])?
        .ok()?;
    h.codchi_with(
        &["secrets", "set", "plain", "API_TOKEN"],
        b"exported-secret",
    )?
    .ok()?;
    let make = "mkdir -p ~/work; echo mine > ~/work/file; chmod 640 ~/work/file; touch -d @123456789 ~/work/file";
    h.sh("plain", make)?;
    let capable = "mkdir -p /var/lib/kept; cp /bin/true /var/lib/kept/program; \
                   setcap cap_net_raw+ep /var/lib/kept/program; chgrp users /home/ada/work/file";
    h.root_sh("plain", capable)?;
    let id = h.sh("plain", "cat /etc/machine-id")?;
    let tar = h.home.join("plain.tar");
    h.codchi(&["tar", "plain", &tar.to_string_lossy(), "--yes"])?
        .ok()?;
    h.codchi(&["delete", "--yes", "plain"])?.ok()?;

    let fixture = h.repo.join("tests/fixtures/driverless");
    let mut install = h.command("sh");
    install
        .env("MODULES", MODULES)
        .args(["-c", INSTALL, "-"])
        .arg(h.program())
        .arg(&fixture);
    let system = run(&mut install, b"")?.ok()?.text();
    let root = h.home.join("root");
    // Secrets are the person's to bring.
    let secrets = "printf 'API_TOKEN=\"brought along\"\\n' > root/etc/codchi-env; chmod 600 root/etc/codchi-env; \
                   chown 1000 root/etc/codchi-env; rm -f plain-disk; truncate -s 4G plain-disk; \
                   mke2fs -q -t ext4 -d root plain-disk; cc -static -O1 -o plain-init \"$0\"/init.c";
    run(h.command("sh").args(["-c", secrets]).arg(&fixture), b"")?.ok()?;
    first_memory(&h.home)?;
    let report = boot(&h.home, system.trim())?;
    let said = |what: &str| {
        let line = report
            .lines()
            .find_map(|l| l.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_default().trim().to_owned()
    };
    let owner = "ada users 1000 100 640 123456789 mine".to_owned();
    for (what, wanted) in [
        ("failed", String::new()),
        ("state", "running".into()),
        ("multi-user", "active".into()),
        ("host", "plain".into()),
        ("machine-id", id),
        ("file", owner),
        (
            "capability",
            "/var/lib/kept/program cap_net_raw=ep".to_owned(),
        ),
        ("ran", "once".into()),
        ("secret", "brought along".into()),
        ("command", "Hello, world!".into()),
        ("sudo", "0".into()),
        ("codchi", String::new()),
    ] {
        same(what, said(what), wanted).map_err(|e| {
            let why = e.message().unwrap_or_default();
            format!("{why}; it said:\n{report}")
        })?;
    }
    if !said("of another").contains("Permission denied") || report.contains("exported-secret") {
        return Err(format!("a secret is another's: {report}").into());
    }
    let script = "rm -rf root plain.tar plain-disk plain-kernel plain-modules plain-init plain-memory plain-console plain-report";
    run(h.command("sh").args(["-c", script]), b"")?.ok()?;
    same("what is left", root.exists(), false)
}

/// An archive of the program that mounts the disk, and of the modules for that, as the kernel reads it: initramfs buffer format.
fn first_memory(home: &Path) -> Result<(), Failed> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, content: &[u8]| {
        let mut header = String::from("070701");
        for field in [
            0,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ] {
            let _ = write!(header, "{field:08x}");
        }
        for part in [header.as_bytes(), name.as_bytes(), b"\0"]
            .concat()
            .chunks(4)
        {
            archive.extend(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("init", 0o100755, &codchi_fs::read(home.join("plain-init"))?);
    add("modules", 0o040755, b"");
    for module in codchi_fs::read_dir(home.join("plain-modules"))? {
        let name = format!("modules/{}", module.file_name().to_string_lossy());
        add(&name, 0o100644, &codchi_fs::read(module.path())?);
    }
    add("TRAILER!!!", 0, b"");
    Ok(codchi_fs::write(home.join("plain-memory"), archive)?)
}

/// Boots the disk and returns what the system said of itself.
fn boot(home: &Path, system: &str) -> Result<String, Failed> {
    let file = |name: &str| home.join(name).to_string_lossy().into_owned();
    let line = format!(
        "console=ttyS0 panic=-1 quiet loglevel=4 systemd.show_status=false SYSTEM={system}/init"
    );
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", "1024", "-smp", "2", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-kernel", &file("plain-kernel")])
        .args(["-initrd", &file("plain-memory"), "-append", &line])
        .args([
            "-drive",
            &format!("if=virtio,format=raw,file={}", file("plain-disk")),
        ])
        .args(["-serial", &format!("file:{}", file("plain-console"))])
        .args(["-serial", &format!("file:{}", file("plain-report"))])
        .stdin(Stdio::null())
        .spawn()?;
    let until = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(status) = qemu.try_wait()? {
            break status.success();
        }
        if Instant::now() > until {
            qemu.kill()?;
            qemu.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let read = |name: &str| codchi_fs::read(home.join(name)).unwrap_or_default();
    let report = String::from_utf8_lossy(&read("plain-report")).replace('\r', "");
    if ended && report.ends_with("end\n") {
        return Ok(report);
    }
    let console = String::from_utf8_lossy(&read("plain-console")).into_owned();
    Err(format!("it did not say all of what it should: {report}\nits console: {console}").into())
}
