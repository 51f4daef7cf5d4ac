//! Nix's internal-json log.
//!
//! Each line is `@nix {...}` with an `action`: `start` and `stop` of an activity, a `result` of one, or a `msg`. The
//! numbers are those of Nix's `logging.hh`, unchanged since 2.0. What is not known is passed over.

use std::collections::HashMap;

use codchi_core::progress::{Event, Progress};
use serde_json::Value;

use crate::trace::strip_escapes;

mod activity {
    pub const COPY_PATH: u64 = 100;
    pub const FILE_TRANSFER: u64 = 101;
    pub const BUILDS: u64 = 104;
    pub const BUILD: u64 = 105;
}

mod result {
    pub const BUILD_LOG_LINE: u64 = 101;
    pub const PROGRESS: u64 = 105;
    pub const POST_BUILD_LOG_LINE: u64 = 107;
}

/// How many lines of each build's output are kept for an error.
const TAIL: usize = 25;

/// Warnings that only follow from what git said.
const FOLLOW_UPS: [&str; 4] = [
    "could not read HEAD ref from repo at",
    "could not update mtime for file",
    "could not update cached head",
    "could not get HEAD ref for repository",
];

#[derive(Default)]
struct Activity {
    kind: u64,
    done: u64,
    expected: u64,
    drv: Option<String>,
}

/// Reads the log line by line, reports progress, and keeps what an error needs.
#[derive(Default)]
pub struct Parser {
    activities: HashMap<u64, Activity>,
    fetched: Totals,
    errors: Vec<String>,
    tails: HashMap<String, Vec<String>>,
    failed: Option<String>,
}

#[derive(Default)]
struct Totals {
    started: u64,
    finished: u64,
    bytes: u64,
    total_bytes: u64,
}

impl Parser {
    /// An empty parser.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one line of Nix's stderr.
    pub fn line(&mut self, line: &str, progress: &dyn Progress) {
        let Some(json) = line.strip_prefix("@nix ") else {
            let text = strip_escapes(line);
            if !text.trim().is_empty() {
                // Programs that Nix starts (git, ssh) write here too.
                self.errors.push(text);
            }
            return;
        };
        let Ok(v) = serde_json::from_str::<Value>(json) else { return };
        let id = v["id"].as_u64().unwrap_or(0);
        match v["action"].as_str() {
            Some("start") => self.start(id, &v, progress),
            Some("stop") => self.stop(id, progress),
            Some("result") => self.result(id, &v, progress),
            Some("msg") => self.message(&v, progress),
            _ => {}
        }
    }

    fn start(&mut self, id: u64, v: &Value, progress: &dyn Progress) {
        let kind = v["type"].as_u64().unwrap_or(0);
        let subject = v["fields"][0].as_str().unwrap_or("");
        let mut activity = Activity { kind, ..Activity::default() };
        match kind {
            activity::BUILD => {
                progress.report(Event::Started(package_name(subject)));
                activity.drv = Some(subject.to_owned());
            }
            activity::COPY_PATH => {
                self.fetched.started += 1;
                progress.report(Event::Started(package_name(subject)));
            }
            activity::FILE_TRANSFER => self.fetched.started += 1,
            _ => {}
        }
        self.activities.insert(id, activity);
    }

    fn stop(&mut self, id: u64, progress: &dyn Progress) {
        let Some(activity) = self.activities.remove(&id) else { return };
        if matches!(activity.kind, activity::COPY_PATH | activity::FILE_TRANSFER) {
            self.fetched.finished += 1;
            self.fetched.bytes = self.fetched.bytes.saturating_add(activity.done);
            self.fetched.total_bytes =
                self.fetched.total_bytes.saturating_add(activity.done.max(activity.expected));
            self.report_fetched(progress);
        }
    }

    fn result(&mut self, id: u64, v: &Value, progress: &dyn Progress) {
        let fields = &v["fields"];
        let Some(activity) = self.activities.get_mut(&id) else { return };
        match v["type"].as_u64() {
            Some(result::BUILD_LOG_LINE | result::POST_BUILD_LOG_LINE) => {
                let line = strip_escapes(fields[0].as_str().unwrap_or(""));
                progress.report(Event::Log(&line));
                if let Some(drv) = &activity.drv {
                    let tail = self.tails.entry(drv.clone()).or_default();
                    if tail.len() == TAIL {
                        tail.remove(0);
                    }
                    tail.push(line);
                }
            }
            Some(result::PROGRESS) => {
                activity.done = fields[0].as_u64().unwrap_or(0);
                activity.expected = fields[1].as_u64().unwrap_or(0);
                match activity.kind {
                    activity::BUILDS => progress.report(Event::Items {
                        what: "builds",
                        done: activity.done,
                        total: activity.expected,
                        bytes: 0,
                        total_bytes: 0,
                    }),
                    activity::COPY_PATH | activity::FILE_TRANSFER => self.report_fetched(progress),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn message(&mut self, v: &Value, progress: &dyn Progress) {
        let text = strip_escapes(v["msg"].as_str().unwrap_or(""));
        match v["level"].as_u64() {
            Some(0) => {
                if self.failed.is_none() {
                    self.failed = quoted_drv(&text);
                }
                self.errors.push(text);
            }
            Some(1) => {
                let text = text.trim();
                // What Nix says after git has failed, when the reason is known.
                if FOLLOW_UPS.iter().any(|f| text.contains(f)) {
                    return;
                }
                progress.report(Event::Warning(text.strip_prefix("warning: ").unwrap_or(text)));
            }
            _ => {}
        }
    }

    fn report_fetched(&self, progress: &dyn Progress) {
        let mut bytes = self.fetched.bytes;
        let mut total_bytes = self.fetched.total_bytes;
        for a in self.activities.values() {
            if matches!(a.kind, activity::COPY_PATH | activity::FILE_TRANSFER) {
                bytes = bytes.saturating_add(a.done);
                total_bytes = total_bytes.saturating_add(a.done.max(a.expected));
            }
        }
        progress.report(Event::Items {
            what: "downloads",
            done: self.fetched.finished,
            total: self.fetched.started,
            bytes,
            total_bytes,
        });
    }

    /// The error text, as Nix would have written it to a terminal.
    pub fn errors(&self) -> String {
        self.errors.join("\n")
    }

    /// The derivation whose build failed first, and the last lines it wrote.
    pub fn failed_build(&self) -> Option<(&str, &[String])> {
        let drv = self.failed.as_deref()?;
        Some((drv, self.tails.get(drv).map(Vec::as_slice).unwrap_or_default()))
    }
}

/// `/nix/store/<hash>-hello-2.12.drv` -> `hello-2.12`.
pub fn package_name(path: &str) -> &str {
    let base = path.rsplit('/').next().unwrap_or(path);
    let base = base.get(33..).filter(|_| base.as_bytes().get(32) == Some(&b'-')).unwrap_or(base);
    base.strip_suffix(".drv").unwrap_or(base)
}

/// The first `'/nix/store/....drv'` of a message about a failed build.
fn quoted_drv(text: &str) -> Option<String> {
    if !(text.contains("builder for") || text.contains("build of") || text.contains("Cannot build")) {
        return None;
    }
    text.split('\'').find(|w| w.starts_with("/nix/store/") && w.ends_with(".drv")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);
    impl Progress for Seen {
        fn report(&self, event: Event<'_>) {
            self.0.lock().unwrap().push(format!("{event:?}"));
        }
    }

    const DRV: &str = "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-hello-2.12.drv";

    fn feed(lines: &[String]) -> (Parser, Vec<String>) {
        let (mut p, seen) = (Parser::new(), Seen::default());
        for l in lines {
            p.line(l, &seen);
        }
        (p, seen.0.into_inner().unwrap())
    }

    #[test]
    fn a_build_is_named_its_output_shown_and_kept_for_the_error() {
        let (p, seen) = feed(&[
            r#"@nix {"action":"start","id":1,"level":5,"parent":0,"text":"","type":104}"#.into(),
            format!(
                r#"@nix {{"action":"start","fields":["{DRV}","",1,1],"id":2,"level":3,"parent":0,"text":"building","type":105}}"#
            ),
            r#"@nix {"action":"result","fields":["compiling"],"id":2,"type":101}"#.into(),
            r#"@nix {"action":"result","fields":[1,3,1,0],"id":1,"type":105}"#.into(),
            format!(
                r#"@nix {{"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m builder for '{DRV}' failed with exit code 1"}}"#
            ),
        ]);
        assert_eq!(
            seen,
            [
                "Started(\"hello-2.12\")",
                "Log(\"compiling\")",
                "Items { what: \"builds\", done: 1, total: 3, bytes: 0, total_bytes: 0 }"
            ]
        );
        assert_eq!(p.failed_build(), Some((DRV, &["compiling".to_owned()][..])));
        assert!(p.errors().starts_with("error: builder for"));
    }

    #[test]
    fn bytes_of_downloads_add_up() {
        let (_, seen) = feed(&[
            r#"@nix {"action":"start","fields":["http://x/a"],"id":7,"level":4,"type":101}"#.into(),
            r#"@nix {"action":"start","fields":["http://x/b"],"id":8,"level":4,"type":101}"#.into(),
            r#"@nix {"action":"result","fields":[10,100,0,0],"id":7,"type":105}"#.into(),
            r#"@nix {"action":"result","fields":[5,50,0,0],"id":8,"type":105}"#.into(),
            r#"@nix {"action":"result","fields":[100,100,0,0],"id":7,"type":105}"#.into(),
            r#"@nix {"action":"stop","id":7}"#.into(),
        ]);
        assert_eq!(
            seen.last().unwrap(),
            "Items { what: \"downloads\", done: 1, total: 2, bytes: 105, total_bytes: 150 }"
        );
    }

    #[test]
    fn names_of_paths() {
        assert_eq!(package_name(DRV), "hello-2.12");
        assert_eq!(package_name("odd"), "odd");
        assert_eq!(package_name(""), "");
        assert_eq!(package_name("äääääääääääääääääääääääääääääääää"), "äääääääääääääääääääääääääääääääää");
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,200}") {
            feed(&[line.clone(), format!("@nix {line}")]);
        }

        #[test]
        fn any_activity_is_survived(action in "(start|stop|result|msg|x)", id in 0u64..4, kind in 99u64..113, a in proptest::num::u64::ANY, s in ".{0,40}") {
            let v = |f: Value| format!("@nix {}", serde_json::json!({"action": action, "id": id, "type": kind, "level": id, "fields": f, "msg": s}));
            feed(&[v(serde_json::json!([a, a])), v(serde_json::json!([s])), v(Value::Null), v(serde_json::json!([a, a])), v(serde_json::json!({}))]);
        }
    }
}
