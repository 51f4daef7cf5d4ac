//! A machine as libvirt takes it: a transient domain, which is gone when it is off.

use std::path::Path;

use codchi_core::status::Acceleration;
use codchi_runtime::guest;

use crate::vm::attendant::LINE;
use crate::vm::kernel::Settings;

/// The namespace of Codchi's own words.
const WORDS: &str = "https://codchi.org/libvirt/1";

/// What libvirt is told.
pub struct Domain<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Whose it is: the folder with the machine's files.
    pub owner: &'a Path,
    /// Memory, processors.
    pub settings: &'a Settings,
    /// What the processors are.
    pub processor: Acceleration,
    /// The image of the kernel.
    pub image: &'a Path,
    /// The number of the descriptor with the first memory.
    pub memory: i32,
    /// What libvirt runs as QEMU.
    pub emulator: &'a Path,
    /// The machine's devices, as arguments of QEMU.
    pub devices: &'a [String],
    /// Variables of what it runs.
    pub variables: &'a [(&'a str, String)],
    /// What this libvirt confines its machines by: all of that is left to Codchi.
    pub models: &'a [String],
}

/// Text within XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c => out.push(c),
        }
    }
    out
}

/// By what a domain is known as that of a machine.
pub fn mark(owner: &Path) -> String {
    format!("folder=\"{}\"", escaped(&owner.to_string_lossy()))
}

impl Domain<'_> {
    /// The document.
    pub fn xml(&self) -> String {
        let (kind, cpu) = match self.processor {
            Acceleration::Kvm => ("type='kvm'", "host-passthrough"),
            Acceleration::Tcg => ("type='qemu'", "maximum"),
        };
        let path = |p: &Path| escaped(&p.to_string_lossy());
        let labels: String = self.models.iter().map(|m| label(m)).collect();
        let words = |name: &str, all: String| format!("<qemu:{name} {all}/>");
        let devices: String =
            self.devices.iter().map(|a| words("arg", format!("value='{}'", escaped(a)))).collect();
        let variables: String = self
            .variables
            .iter()
            .map(|(name, value)| words("env", format!("name='{name}' value='{}'", escaped(value))))
            .collect();
        format!(
            "<domain {kind} xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
             <name>{name}</name>\
             <metadata><codchi:machine xmlns:codchi='{WORDS}' {mark}/></metadata>\
             <memory unit='bytes'>{bytes}</memory><vcpu>{cpus}</vcpu>\
             <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\
             <os><type arch='{arch}' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
             <cmdline>{LINE}</cmdline></os>\
             <features><acpi/></features><cpu mode='{cpu}'/><clock offset='utc'/>\
             <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
             <devices><emulator>{emulator}</emulator><controller type='usb' model='none'/>\
             <memballoon model='none'/><serial type='pty'/></devices>\
             {labels}<qemu:commandline>{devices}{variables}</qemu:commandline></domain>\n",
            name = escaped(self.name),
            mark = mark(self.owner),
            bytes = self.settings.memory,
            cpus = self.settings.cpus,
            arch = std::env::consts::ARCH,
            kernel = path(self.image),
            initrd = guest::descriptor(self.memory),
            emulator = path(self.emulator),
        )
    }
}

/// What a model is told. By the first of them, files have owners: none is changed, and what libvirt runs is what runs it.
fn label(model: &str) -> String {
    match model {
        "dac" if codchi_runtime::outer::is_privileged() => {
            "<seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>".into()
        }
        "dac" | "none" => String::new(),
        other => format!("<seclabel type='none' model='{}'/>", escaped(other)),
    }
}

/// The models that the capabilities of a libvirt name.
pub fn models(capabilities: &str) -> Vec<String> {
    let parts = capabilities.split("<secmodel>").skip(1);
    parts.filter_map(|p| Some(p.split_once("<model>")?.1.split_once("</model>")?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_chose_stays_text() {
        let settings = Settings {
            version: 1,
            kernel: "/nix/store/k".into(),
            modules: "/nix/store/m".into(),
            load: Vec::new(),
            memory: 1 << 30,
            cpus: 2,
        };
        let domain = Domain {
            name: "m",
            owner: Path::new("/home/o'<\"n"),
            settings: &settings,
            processor: Acceleration::Tcg,
            image: Path::new("/nix/store/k/bzImage"),
            memory: 207,
            emulator: Path::new("/run/e"),
            devices: &["-device".into(), "a&b".into()],
            variables: &[("V", "x<y".into())],
            models: &["apparmor".into()],
        };
        let xml = domain.xml();
        assert!(xml.contains("folder=\"/home/o&apos;&lt;&quot;n\"") && xml.contains(&mark(domain.owner)));
        assert!(xml.contains("<qemu:arg value='a&amp;b'/>") && xml.contains("value='x&lt;y'"));
        assert!(xml.contains("<initrd>/proc/self/fd/207</initrd>") && xml.contains("model='apparmor'"));
        assert!(xml.contains("<memory unit='bytes'>1073741824</memory>"));
    }

    #[test]
    fn models_are_those_that_are_named() {
        let text =
            "<secmodel>\n<model>none</model>\n</secmodel><secmodel><model>dac</model><doi>0</doi></secmodel>";
        assert_eq!(models(text), ["none", "dac"]);
        assert!(models("<host/>").is_empty());
    }
}
