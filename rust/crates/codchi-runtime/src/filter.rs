//! The deny list of system calls as a BPF program.
//!
//! One program serves all the instruction sets a process of this host can use: the kernel says with each call by which
//! one it was made. A list that looked at its own only would be walked round with a 32-bit call.

use std::collections::BTreeMap;
use std::str::FromStr;

use codchi_sys::seccomp::Instruction;

use crate::error::{Error, Result};
use crate::spec::Seccomp;

// linux/audit.h
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;
/// Calls of the x32 ABI carry this bit; the ABI is dead, and refused as a whole.
const X32: u32 = 0x4000_0000;

// linux/seccomp.h; offsets in struct seccomp_data
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;
/// ENOSYS.
const NO_SUCH_CALL: u32 = 38;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of the first argument; both processors put it first.
const FIRST_ARGUMENT: u32 = 16;
/// EAFNOSUPPORT.
const NO_SUCH_FAMILY: u32 = 97;
/// Families of sockets by name (linux/socket.h).
const FAMILIES: [(&str, u32); 1] = [("AF_VSOCK", 40)];

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

type Table = (u32, fn(&str) -> Option<u32>);

macro_rules! lookup {
    ($arch:ident) => {
        |name| syscalls::$arch::Sysno::from_str(name).ok().and_then(|n| u32::try_from(n.id()).ok())
    };
}

const TABLES: [Table; 4] =
    [(X86_64, lookup!(x86_64)), (I386, lookup!(x86)), (AARCH64, lookup!(aarch64)), (ARM, lookup!(arm))];

/// The tables of the processors this program is built for.
fn tables() -> &'static [Table] {
    if cfg!(target_arch = "aarch64") { &TABLES[2..] } else { &TABLES[..2] }
}

/// The program for a deny list; empty for an empty list.
///
/// # Errors
/// A name that no instruction set has.
pub fn program(list: &Seccomp) -> Result<Vec<Instruction>> {
    let mut named = list.deny.iter().chain(&list.absent);
    if let Some(n) = named.find(|n| TABLES.iter().all(|(_, lookup)| lookup(n).is_none())) {
        return Err(Error::Settings(format!("`{n}` is not a system call")));
    }
    let family = |n: &String| FAMILIES.iter().find(|(name, _)| name == n).map(|(_, number)| *number);
    if let Some(n) = list.families.iter().find(|n| family(n).is_none()) {
        return Err(Error::Settings(format!("`{n}` is not a family of sockets")));
    }
    if list.deny.is_empty() && list.absent.is_empty() && list.families.is_empty() {
        return Ok(Vec::new());
    }
    let refuse = ERRNO | u32::from(list.errno);
    let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let mut all = vec![op(LOAD, ARCHITECTURE)];
    for (arch, lookup) in tables() {
        // A call that is in both lists is refused.
        let absent = list.absent.iter().filter_map(|n| Some((lookup(n)?, ERRNO | NO_SUCH_CALL)));
        let mut answers: BTreeMap<u32, u32> = absent.collect();
        answers.extend(list.deny.iter().filter_map(|n| Some((lookup(n)?, refuse))));
        let mut block = vec![op(LOAD, NUMBER)];
        if *arch == X86_64 {
            block.push(Instruction { code: JUMP_AT_LEAST, jt: 0, jf: 1, k: X32 });
            block.push(op(RETURN, refuse));
        }
        if !list.families.is_empty() {
            // An old call whose arguments lie where no filter looks; whoever has that has the new one, too.
            if let Some(number) = lookup("socketcall") {
                answers.entry(number).or_insert(ERRNO | NO_SUCH_CALL);
            }
            let of = list.families.iter().filter_map(family);
            let checks = of.flat_map(|f| {
                let then = op(RETURN, ERRNO | NO_SUCH_FAMILY);
                [Instruction { code: JUMP_EQUAL, jt: 0, jf: 1, k: f }, then]
            });
            let mut inner = vec![op(LOAD, FIRST_ARGUMENT)];
            inner.extend(checks);
            inner.push(op(LOAD, NUMBER));
            if let (Some(socket), Ok(over)) = (lookup("socket"), u8::try_from(inner.len())) {
                block.push(Instruction { code: JUMP_EQUAL, jt: 0, jf: over, k: socket });
                block.extend(inner);
            }
        }
        for (number, answer) in answers {
            block.push(Instruction { code: JUMP_EQUAL, jt: 0, jf: 1, k: number });
            block.push(op(RETURN, answer));
        }
        block.push(op(RETURN, ALLOW));
        let over = u8::try_from(block.len())
            .map_err(|_| Error::Settings("the list of system calls is too long".into()))?;
        all.push(Instruction { code: JUMP_EQUAL, jt: 0, jf: over, k: *arch });
        all.extend(block);
    }
    // No other instruction set can be used on this processor; should one appear, it has no list.
    all.push(op(RETURN, KILL));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn run(p: &[Instruction], arch: u32, nr: u32) -> u32 {
        run_with(p, arch, nr, 0)
    }

    fn run_with(p: &[Instruction], arch: u32, nr: u32, first: u32) -> u32 {
        let (mut i, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = p[i];
            i += 1;
            match code {
                LOAD if k == FIRST_ARGUMENT => a = first,
                LOAD => a = if k == NUMBER { nr } else { arch },
                JUMP_EQUAL => i += usize::from(if a == k { jt } else { jf }),
                JUMP_AT_LEAST => i += usize::from(if a >= k { jt } else { jf }),
                _ => return k,
            }
        }
    }

    fn list(names: &[&str]) -> Seccomp {
        Seccomp { deny: names.iter().map(|n| (*n).into()).collect(), ..Seccomp::default() }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_absent_looks_as_if_the_kernel_lacked_it() {
        let absent = vec!["keyctl".into(), "bpf".into()];
        let p = program(&Seccomp { absent, ..list(&["bpf"]) }).unwrap();
        assert_eq!([run(&p, X86_64, 250), run(&p, I386, 288)], [ERRNO | 38; 2]);
        assert_eq!(run(&p, X86_64, 321), ERRNO | 1);
        assert_eq!(run(&p, X86_64, 39), ALLOW);
        let wrong = Seccomp { absent: vec!["nonsense".into()], ..Seccomp::default() };
        assert!(program(&wrong).is_err());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn calls_are_refused_under_every_instruction_set() {
        let p = program(&list(&["kexec_load", "init_module", "create_module", "bpf"])).unwrap();
        // x86_64: 246, 175, 174, 321; i386: 283, 128, 127, 357
        for nr in [246, 175, 174, 321] {
            assert_eq!(run(&p, X86_64, nr), ERRNO | 1, "{nr}");
            assert_eq!(run(&p, X86_64, nr | X32), ERRNO | 1);
        }
        for nr in [283, 128, 127, 357] {
            assert_eq!(run(&p, I386, nr), ERRNO | 1, "{nr}");
        }
        assert_eq!(run(&p, X86_64, 39), ALLOW);
        assert_eq!(run(&p, I386, 246), ALLOW);
        assert_eq!(run(&p, X86_64, X32 | 39), ERRNO | 1);
        assert_eq!(run(&p, AARCH64, 39), KILL);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_refused_family_of_sockets_looks_as_if_the_kernel_lacked_it() {
        let p = program(&Seccomp { families: vec!["AF_VSOCK".into()], ..list(&["acct"]) }).unwrap();
        // socket: 41 and, for 32-bit programs, 359; socketcall: 102 there
        for (arch, socket) in [(X86_64, 41), (I386, 359)] {
            assert_eq!(run_with(&p, arch, socket, 40), ERRNO | 97);
            assert_eq!(run_with(&p, arch, socket, 1), ALLOW);
        }
        assert_eq!(run_with(&p, I386, 102, 1), ERRNO | 38);
        assert_eq!(run_with(&p, X86_64, 163, 40), ERRNO | 1);
        assert_eq!(run_with(&p, X86_64, 42, 40), ALLOW);
        let wrong = Seccomp { families: vec!["AF_NONE".into()], ..Seccomp::default() };
        assert!(program(&wrong).is_err());
    }

    #[test]
    fn a_name_that_only_another_processor_has_is_fine_and_an_unknown_one_is_not() {
        assert!(program(&list(&["kexec_file_load"])).is_ok());
        assert!(program(&list(&["arm_fadvise64_64"])).is_ok());
        assert!(program(&list(&["nonsense"])).unwrap_err().to_string().contains("nonsense"));
        assert!(program(&list(&[])).unwrap().is_empty());
    }
}
