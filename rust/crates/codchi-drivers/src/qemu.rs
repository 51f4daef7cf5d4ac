//! The driver of QEMU: whoever looks after a machine starts it. No daemon.

use codchi_runtime::Result;
use codchi_runtime::guest::{FIRST_FD, Guest, Program};
use codchi_sys::process::Child;

use crate::vm::Vm;
use crate::vm::attendant::{Runner, Wanted, kernel, machine, qemu};
use crate::{Flavour, Info};

/// The driver.
pub(crate) static QEMU: Vm = Vm {
    info: &Info { name: "qemu", kind: Flavour::Vm },
    probe: |_| Vec::new(),
    usable: |_| Ok(()),
    runner: |_, _| Ok(Box::new(Own)),
};

/// QEMU is a child of whoever looks after the machine.
pub(crate) struct Own;

impl Runner for Own {
    fn first(&self) -> i32 {
        FIRST_FD
    }

    fn start(&mut self, guest: &mut Guest, wanted: Wanted<'_>) -> Result<Child> {
        let mut args = machine(wanted.processor, wanted.settings);
        args.extend(wanted.devices);
        args.extend(kernel(&wanted.image, wanted.memory));
        let program = Program { path: qemu()?, args, fds: wanted.fds };
        guest.start(wanted.launch, &program, wanted.served, wanted.port, &mut |m| wanted.said.push(m))
    }
}
