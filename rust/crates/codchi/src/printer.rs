//! Everything a person sees: data on stdout, all else on stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::text;

use crate::failure::Failure;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Errors only.
    Quiet,
    /// What changes, and what takes long.
    Normal,
    /// Builds and fetches by name.
    Verbose,
    /// Every line of every log.
    Debug,
}

/// Prints.
pub struct Printer {
    level: Level,
    color_out: bool,
    color_err: bool,
    live: bool,
    columns: u16,
    block: Mutex<Block>,
}

/// The status block at the end of a terminal.
#[derive(Default)]
struct Block {
    phase: Option<Phase>,
    drawn: bool,
    last: Option<Instant>,
}

struct Phase {
    name: String,
    since: Instant,
    items: Option<(String, u64, u64, u64, u64)>,
    current: String,
    told: Option<Instant>,
}

/// How often the block is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);
/// How often plain output tells where long work is.
const PLAIN: Duration = Duration::from_secs(10);

impl Printer {
    /// A printer for this process's streams.
    pub fn new(level: Level, no_color: bool) -> Printer {
        let colorful = !no_color
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let terminal = std::io::stderr().is_terminal();
        Printer {
            level,
            color_out: colorful && std::io::stdout().is_terminal(),
            color_err: colorful && terminal,
            live: terminal && std::env::var_os("TERM").is_some_and(|t| t != "dumb"),
            columns: rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |w| w.ws_col.max(20)),
            block: Mutex::default(),
        }
    }

    /// Data: a line on stdout.
    pub fn data(&self, line: &str) {
        self.clear();
        let _ = writeln!(std::io::stdout(), "{}", text::printable(line));
    }

    /// Data as it is, without a line break added: completions, man pages, logs already made printable.
    pub fn raw(&self, bytes: &[u8]) {
        self.clear();
        let mut out = std::io::stdout();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }

    /// The same on stderr: what another program said there, already made printable.
    pub fn raw_err(&self, bytes: &[u8]) {
        self.clear();
        let _ = std::io::stderr().write_all(bytes);
    }

    /// One JSON document on stdout.
    pub fn json(&self, value: &impl serde::Serialize) {
        self.clear();
        let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
        text.push('\n');
        self.raw(text.as_bytes());
    }

    /// Bold on a terminal's stdout.
    pub fn strong(&self, s: &str) -> String {
        if self.color_out { format!("\x1b[1m{s}\x1b[0m") } else { s.into() }
    }

    /// A table on stdout: the first row is the heading.
    pub fn table(&self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let rows: Vec<Vec<String>> =
            rows.iter().map(|r| r.iter().map(|c| text::printable_line(c)).collect()).collect();
        let width =
            |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        self.clear();
        let mut out = String::new();
        for (n, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if i + 1 < row.len() {
                    line.extend(std::iter::repeat_n(' ', widths[i] - cell.chars().count() + 2));
                }
            }
            let line = line.trim_end();
            out.push_str(&if n == 0 { self.strong(line) } else { line.to_string() });
            out.push('\n');
        }
        let _ = std::io::stdout().write_all(out.as_bytes());
    }

    /// What is being done or was done.
    pub fn say(&self, message: &str) {
        if self.level >= Level::Normal {
            self.line(&text::printable(message));
        }
    }

    /// Only with `-v`.
    pub fn detail(&self, message: &str) {
        if self.level >= Level::Verbose {
            self.line(&text::printable(message));
        }
    }

    /// Something to know that does not stop the work.
    pub fn warn(&self, message: &str) {
        if self.level >= Level::Normal {
            self.line(&format!("{} {}", self.paint("33;1", "warning:"), text::printable(message)));
        }
    }

    /// What to do next.
    pub fn hint(&self, message: &str) {
        if self.level >= Level::Normal {
            self.line(&format!("  {} {}", self.paint("36", "hint:"), text::printable(message)));
        }
    }

    /// A failure with its hints.
    pub fn failure(&self, failure: &Failure) {
        self.done();
        #[cfg(debug_assertions)]
        note(failure);
        let head = if failure.kind == Kind::Interrupted { "" } else { "error: " };
        self.line(&format!("{}{}", self.paint("31;1", head), text::printable(&failure.message)));
        for hint in failure.advice() {
            self.line(&format!("  {} {}", self.paint("36", "hint:"), text::printable(hint)));
        }
    }

    /// A question on the terminal, answered with a line.
    pub fn ask(&self, question: &str) -> Option<String> {
        self.clear();
        let mut err = std::io::stderr();
        let _ = write!(err, "{} ", text::printable(question));
        let _ = err.flush();
        let mut answer = String::new();
        match std::io::stdin().read_line(&mut answer) {
            Ok(n) if n > 0 => Some(answer.trim().into()),
            _ => None,
        }
    }

    /// Ends the phase that is shown.
    pub fn done(&self) {
        let mut block = lock(&self.block);
        block.phase = None;
        erase(&mut block);
    }

    fn clear(&self) {
        erase(&mut lock(&self.block));
    }

    fn paint(&self, code: &str, s: &str) -> String {
        if self.color_err && !s.is_empty() { format!("\x1b[{code}m{s}\x1b[0m") } else { s.into() }
    }

    fn line(&self, line: &str) {
        let mut block = lock(&self.block);
        erase(&mut block);
        let _ = writeln!(std::io::stderr(), "{line}");
        self.draw(&mut block, true);
    }

    fn draw(&self, block: &mut Block, now: bool) {
        if !self.live || self.level == Level::Quiet {
            return;
        }
        if !now && block.last.is_some_and(|l| l.elapsed() < REDRAW) {
            return;
        }
        let Some(phase) = &block.phase else { return };
        let mut line = text::printable_line(&phase.describe());
        if line.chars().count() >= usize::from(self.columns) {
            line = line.chars().take(usize::from(self.columns) - 2).chain(['…']).collect();
        }
        let painted = self.paint("2", &line);
        let mut err = std::io::stderr();
        let _ = write!(err, "\r\x1b[K{painted}");
        let _ = err.flush();
        block.drawn = true;
        block.last = Some(Instant::now());
    }

    /// Draws the block anew, so that the elapsed time moves; called by the ticker.
    pub fn tick(&self) {
        self.draw(&mut lock(&self.block), false);
    }

    /// Whether a block is drawn at all.
    pub fn is_live(&self) -> bool {
        self.live && self.level > Level::Quiet
    }
}

impl Phase {
    fn describe(&self) -> String {
        let mut line = self.name.clone();
        if let Some((what, done, total, bytes, total_bytes)) = &self.items {
            if *total > 0 {
                line.push_str(&format!(" {done}/{total} {what}"));
            } else if *done > 0 {
                line.push_str(&format!(" {done} {what}"));
            }
            if *total_bytes > 0 {
                line.push_str(&format!(", {} of {}", text::bytes(*bytes), text::bytes(*total_bytes)));
            } else if *bytes > 0 {
                line.push_str(&format!(", {}", text::bytes(*bytes)));
            }
        }
        let elapsed = self.since.elapsed().as_secs();
        if elapsed > 0 {
            line.push_str(&format!(", {}", text::seconds(elapsed)));
        }
        if !self.current.is_empty() {
            line.push_str(&format!(" ({})", self.current));
        }
        line
    }
}

impl Progress for Printer {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Phase(name) => {
                let mut block = lock(&self.block);
                if block.phase.as_ref().is_some_and(|p| p.name == name) {
                    return;
                }
                block.phase = Some(Phase {
                    name: name.into(),
                    since: Instant::now(),
                    items: None,
                    current: String::new(),
                    told: Some(Instant::now()),
                });
                if self.live {
                    self.draw(&mut block, true);
                } else if self.level >= Level::Normal {
                    let _ = writeln!(std::io::stderr(), "{}", text::printable_line(name));
                }
            }
            Event::Items { what, done, total, bytes, total_bytes } => {
                let mut block = lock(&self.block);
                let Some(phase) = block.phase.as_mut() else { return };
                phase.items = Some((what.into(), done, total, bytes, total_bytes));
                if self.live {
                    self.draw(&mut block, false);
                } else if self.level >= Level::Normal && phase.told.is_none_or(|t| t.elapsed() >= PLAIN) {
                    phase.told = Some(Instant::now());
                    let line = text::printable_line(&phase.describe());
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
            }
            Event::Started(name) => {
                if self.level >= Level::Verbose {
                    self.line(&format!("  {}", text::printable_line(name)));
                }
                let mut block = lock(&self.block);
                if let Some(phase) = block.phase.as_mut() {
                    phase.current = name.into();
                }
                self.draw(&mut block, false);
            }
            Event::Log(line) => {
                if self.level >= Level::Debug {
                    self.line(&text::printable_line(line));
                }
            }
            Event::Warning(message) => self.warn(message),
        }
    }
}

/// Redraws the status block while it lives, so that a person sees that time passes.
pub struct Ticker<'s> {
    stop: &'s AtomicBool,
}

impl<'s> Ticker<'s> {
    /// Starts redrawing in a scope's thread.
    pub fn start<'e>(
        scope: &'s std::thread::Scope<'s, 'e>,
        printer: &'s Printer,
        stop: &'s AtomicBool,
    ) -> Ticker<'s> {
        if printer.is_live() {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(REDRAW);
                    printer.tick();
                }
            });
        }
        Ticker { stop }
    }
}

impl Drop for Ticker<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Notes a failure for the tests, which look for errors that none of them reaches, in the file `failures` beside the
/// program where there is one.
#[cfg(debug_assertions)]
fn note(failure: &Failure) {
    let hints: Vec<&str> = failure.advice().collect();
    let (message, status) = (&failure.message, failure.kind.exit_status());
    let line = format!("{}\n", serde_json::json!({ "message": message, "status": status, "hints": hints }));
    let file = std::env::current_exe().and_then(|program| {
        std::fs::OpenOptions::new().append(true).open(program.with_file_name("failures"))
    });
    // One call, so that the lines of programs that run at once stay whole.
    let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
}

fn erase(block: &mut Block) {
    if block.drawn {
        let mut err = std::io::stderr();
        let _ = write!(err, "\r\x1b[K");
        let _ = err.flush();
        block.drawn = false;
    }
}

/// A poisoned lock only means that another thread died while printing.
fn lock(block: &Mutex<Block>) -> std::sync::MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
