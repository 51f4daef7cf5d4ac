//! Asking for what must not be seen.

use std::io::Write;
use std::sync::Mutex;

use codchi_core::text;
use codchi_secrets::{MAX_VALUE, Private};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

use crate::app::App;
use crate::interrupt;

/// How the terminal was before it was silent.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Gives the terminal back as it was, where it is silent.
pub fn restore() {
    let before = BEFORE.lock().ok().and_then(|mut b| b.take());
    if let Some(before) = before {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silent;

impl Silent {
    fn begin() -> Option<Silent> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).ok()?;
        let mut silent = before.clone();
        // By the character, so that each one can be answered with a star. Ctrl-C stays a signal.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
        silent.special_codes[SpecialCodeIndex::VMIN] = 0;
        silent.special_codes[SpecialCodeIndex::VTIME] = 2;
        *BEFORE.lock().ok()? = Some(before);
        let begun = Silent;
        tcsetattr(stdin, OptionalActions::Flush, &silent).ok()?;
        Some(begun)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        restore();
    }
}

fn show(text: &str) {
    let mut err = std::io::stderr();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Asks for a value; none: the person gave up (Ctrl-C, or end of file at once).
///
/// One line ends it; where it may have `many_lines`, Ctrl-D on a line of its own does.
pub fn secret(app: &App, question: &str, many_lines: bool) -> Option<Private> {
    app.printer.done();
    // First, for it forgets what was typed before: whoever answers at once must be heard.
    let silent = Silent::begin()?;
    show(&format!("{} ", text::printable(question)));
    let mut held = Private::zeroed(MAX_VALUE).ok()?;
    let mut len = 0;
    // Start of the line that is typed.
    let mut line = 0;
    let done = loop {
        if interrupt::happened() {
            break false;
        }
        let mut one = [0];
        match rustix::io::read(rustix::stdio::stdin(), &mut one) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(_) => break false,
        }
        match one[0] {
            b'\r' | b'\n' if !many_lines => break true,
            // Ctrl-D.
            4 if len > line && many_lines => {}
            4 => break len > 0 || many_lines,
            // Backspace: one character, which may be several bytes.
            8 | 127 => {
                while len > line {
                    len -= 1;
                    let first = held[len] & 0xc0 != 0x80;
                    held[len] = 0;
                    if first {
                        show("\u{8} \u{8}");
                        break;
                    }
                }
            }
            // Ctrl-U: the whole line.
            21 => {
                let shown = held[line..len].iter().filter(|b| **b & 0xc0 != 0x80).count();
                codchi_secrets::wipe(&mut held[line..len]);
                len = line;
                show(&"\u{8} \u{8}".repeat(shown));
            }
            _ if len == MAX_VALUE => {}
            b'\r' | b'\n' => {
                held[len] = b'\n';

                len += 1;
                line = len;
                show("\n");
            }
            b => {
                held[len] = b;
                len += 1;
                if b & 0xc0 != 0x80 {
                    show("*");
                }
            }
        }
        codchi_secrets::wipe(&mut one);
    };
    drop(silent);
    show("\n");
    held.truncate(len);
    // A copy of the right size: the room for the largest value need not be kept.
    done.then(|| Private::copy(&held).ok()).flatten()
}

/// Asks for the passphrase of the secrets; twice for a new one.
pub fn passphrase(app: &App, new: bool) -> Option<Private> {
    if !new {
        return secret(app, "passphrase of your secrets:", false);
    }
    let first = secret(app, "a new passphrase for your secrets:", false).filter(|p| !p.is_empty())?;
    let again = secret(app, "the same again:", false)?;
    if first == again {
        return Some(first);
    }
    app.printer.warn("the two differ");
    None
}
