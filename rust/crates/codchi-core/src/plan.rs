//! What a command is about to change, as data: shown by `--dry-run`, printed as JSON, journalled, then carried out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::name::{DriverName, MachineName};

/// The schema version of [`Plan`].
pub const PLAN_VERSION: u32 = 1;

/// A plan: the steps of one command on one machine, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Plan {
    /// Schema version of this document.
    pub version: u32,
    /// The command, such as `init`.
    pub command: String,
    /// The machine it concerns.
    pub machine: MachineName,
    /// The name that the machine has afterwards, when that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<MachineName>,
    /// The steps. Each is idempotent and knows its inverse.
    pub steps: Vec<PlanStep>,
}

/// A step with its summary for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct PlanStep {
    /// What it does, in one line.
    pub summary: String,
    /// The step itself.
    #[serde(flatten)]
    pub step: Step,
}

/// How a machine takes a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Now, in the running machine.
    Switch,
    /// At the next start.
    Boot,
}

/// A part of a machine that is kept under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What the driver keeps: its files.
    Files,
    /// Its generations.
    Generations,
    /// The roots that were made inside.
    Roots,
    /// The values of its secrets.
    Secrets,
    /// Its logs.
    Logs,
    /// The machine folder: under its name the machine exists.
    Folder,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Step {
    /// Download what the build needs.
    Fetch {
        /// Files.
        files: u64,
        /// Their size; 0 where it is not known.
        bytes: u64,
    },
    /// Build the system.
    Build {
        /// The derivation.
        drv_path: String,
    },
    /// Make an empty root file system owned by the machine's ids.
    CreateRoot {
        /// Where.
        path: PathBuf,
        /// First id of the machine's range, as root; none where the caller's subordinate ids are used.
        uid_base: Option<u32>,
    },
    /// Record a built system.
    AddGeneration {
        /// Its number.
        number: u32,
        /// The system.
        toplevel: String,
    },
    /// Move a finished machine folder to its place: from here on the machine exists.
    InstallConfig {
        /// Where it was made.
        from: PathBuf,
        /// Its place.
        to: PathBuf,
    },
    /// Make the machine's system the one of a generation.
    Activate {
        /// The generation.
        number: u32,
        /// The system.
        toplevel: String,
        /// Now or at the next start.
        how: Activation,
        /// The generation before, to go back to.
        previous: Option<u32>,
    },
    /// See that the running machine came up with a generation, else put it back on the one before and fail.
    Confirm {
        /// The generation.
        number: u32,
        /// The one to go back to.
        previous: u32,
        /// Units that had failed before: they say nothing about the generation.
        failed: Vec<String>,
    },
    /// Start the machine and wait until it is up.
    Start,
    /// Run the init script as the machine's user.
    InitScript {
        /// Its path in the store.
        script: String,
    },
    /// Run a command inside.
    Run {
        /// The command and its arguments.
        argv: Vec<String>,
    },
    /// Stop the machine.
    Stop,
    /// Remove its root file system and all in it.
    RemoveRoot {
        /// Where.
        path: PathBuf,
    },
    /// Forget its generations; the store keeps the files until they are collected.
    RemoveGenerations {
        /// Where they are recorded.
        path: PathBuf,
    },
    /// Forget a generation; the store keeps its files until they are collected.
    ForgetGeneration {
        /// Its number.
        number: u32,
    },
    /// Remove the machine folder.
    RemoveConfig {
        /// Where.
        path: PathBuf,
    },
    /// Remove its logs.
    RemoveLogs {
        /// Where.
        path: PathBuf,
    },
    /// Make a root file system with the files of another machine.
    CopyRoot {
        /// The other machine.
        from: MachineName,
        /// Where.
        path: PathBuf,
        /// First id of the machine's range, as root; none where the caller's subordinate ids are used.
        uid_base: Option<u32>,
    },
    /// Make a root file system with the files in a tar.
    UnpackRoot {
        /// The tar.
        file: PathBuf,
        /// Where.
        path: PathBuf,
        /// First id of the machine's range, as root; none where the caller's subordinate ids are used.
        uid_base: Option<u32>,
    },
    /// Make a root file system on another driver with the machine's files.
    MoveRoot {
        /// The driver that has them.
        from: DriverName,
        /// The driver that gets them.
        to: DriverName,
        /// First id of the machine's range there, where that is chosen beforehand.
        uid_base: Option<u32>,
        /// Whether it starts with the computer.
        #[serde(default)]
        on_boot: bool,
    },
    /// Remove what a driver has of the machine, but that it starts with the computer.
    RemoveRootOn {
        /// The driver.
        driver: DriverName,
        /// Whether it starts with the computer: what the driver has says so only until it is removed.
        #[serde(default)]
        on_boot: bool,
    },
    /// Give a part of a machine to another name.
    Rename {
        /// Which.
        part: Part,
        /// The name it has.
        from: MachineName,
        /// The name it gets.
        to: MachineName,
    },
    /// Start the machine under its new name and wait until it is up.
    StartAs {
        /// That name.
        machine: MachineName,
    },
    /// Keep the values of secrets on the host.
    KeepSecrets {
        /// Their names.
        names: Vec<String>,
    },
    /// Give it the values that another machine's secrets have.
    CopySecrets {
        /// The other machine.
        from: MachineName,
    },
    /// Remove the values of all its secrets.
    RemoveSecrets,
    /// Replace the machine's flake.nix and flake.lock with those of a generation.
    RestoreConfig {
        /// The generation.
        number: u32,
        /// The machine folder.
        path: PathBuf,
    },
    /// Record where the machine is attached on this host.
    WriteHost {
        /// The file.
        path: PathBuf,
        /// Its whole text.
        text: String,
        /// What that changes.
        change: String,
    },
    /// Bring what the running machine has of this host to what is recorded, without touching the machine.
    Give,
    /// Put the flake.lock of a generation in place.
    UpdateLock {
        /// The generation that was built with it.
        number: u32,
        /// The file.
        path: PathBuf,
    },
}

impl Step {
    /// What undoes it; none where nothing needs to be, or nothing can be.
    pub fn inverse(&self) -> Option<Step> {
        match self {
            Step::CreateRoot { path, .. } | Step::CopyRoot { path, .. } | Step::UnpackRoot { path, .. } => {
                Some(Step::RemoveRoot { path: path.clone() })
            }
            Step::Rename { part, from, to } => {
                Some(Step::Rename { part: *part, from: to.clone(), to: from.clone() })
            }
            Step::MoveRoot { to, on_boot, .. } => {
                Some(Step::RemoveRootOn { driver: to.clone(), on_boot: *on_boot })
            }
            Step::AddGeneration { .. } => None,
            Step::InstallConfig { to, .. } => Some(Step::RemoveConfig { path: to.clone() }),
            Step::KeepSecrets { .. } | Step::CopySecrets { .. } => Some(Step::RemoveSecrets),
            Step::Start => Some(Step::Stop),
            _ => None,
        }
    }

    /// Whether it only prepares (downloads, builds): it changes nothing of the machine, is not journalled, and runs without
    /// the machine's lock.
    pub fn prepares(&self) -> bool {
        matches!(self, Step::Fetch { .. } | Step::Build { .. })
    }

    /// What it does, in one line.
    pub fn summary(&self) -> String {
        use crate::text::{bytes, count};
        match self {
            Step::Fetch { files, bytes: 0 } => format!("download {}", count(*files, "file", "files")),
            Step::Fetch { files, bytes: n } => {
                format!("download {}, {}", count(*files, "file", "files"), bytes(*n))
            }
            Step::Build { drv_path } => format!("build `{drv_path}`"),
            Step::CreateRoot { path, uid_base: Some(base) } => {
                format!("make the root file system `{}`, owned by ids from {base} on", path.display())
            }
            Step::CreateRoot { path, uid_base: None } => {
                format!("make the root file system `{}`", path.display())
            }
            Step::AddGeneration { number, .. } => format!("record generation {number}"),
            Step::InstallConfig { to, .. } => format!("put the machine folder at `{}`", to.display()),
            Step::Activate { number, how: Activation::Switch, .. } => {
                format!("switch to generation {number}")
            }
            Step::Activate { number, how: Activation::Boot, .. } => {
                format!("use generation {number} from the next start on")
            }
            Step::Confirm { previous, .. } => {
                format!("see that it comes up, else go back to generation {previous}")
            }
            Step::Start => "start the machine".into(),
            Step::InitScript { script } if script.is_empty() => {
                "run the init script, if the machine has one".into()
            }
            Step::InitScript { .. } => "run the init script".into(),
            Step::Run { argv } => format!("run `{}` inside", crate::text::printable_line(&argv.join(" "))),
            Step::Stop => "stop the machine".into(),
            Step::RemoveRoot { path } => format!("remove `{}` with all files of the machine", path.display()),
            Step::RemoveGenerations { path } => format!("forget the generations in `{}`", path.display()),
            Step::ForgetGeneration { number } => format!("forget generation {number}"),
            Step::RemoveConfig { path } => format!("remove `{}`", path.display()),
            Step::RemoveLogs { path } => format!("remove `{}`", path.display()),
            Step::CopyRoot { from, path, uid_base: Some(base) } => {
                format!("copy the files of `{from}` to `{}`, owned by ids from {base} on", path.display())
            }
            Step::CopyRoot { from, path, uid_base: None } => {
                format!("copy the files of `{from}` to `{}`", path.display())
            }
            Step::UnpackRoot { file, path, .. } => {
                format!("unpack `{}` to `{}`", file.display(), path.display())
            }
            Step::MoveRoot { from, to, .. } => format!("move the files from `{from}` to `{to}`"),
            Step::RemoveRootOn { driver, .. } => format!("remove what `{driver}` has of the machine"),
            Step::Rename { part, from, to } => {
                let what = match part {
                    Part::Files => "files",
                    Part::Generations => "generations",
                    Part::Roots => "roots made inside",
                    Part::Secrets => "secrets",
                    Part::Logs => "logs",
                    Part::Folder => "machine folder",
                };
                format!("rename the {what} of `{from}` to `{to}`")
            }
            Step::StartAs { machine } => format!("start the machine as `{machine}`"),
            Step::KeepSecrets { names } => format!("keep {}", crate::text::printable_line(&names.join(", "))),
            Step::CopySecrets { from } => format!("copy the values of the secrets of `{from}`"),
            Step::RemoveSecrets => "remove the values of its secrets".into(),
            Step::RestoreConfig { number, .. } => {
                format!("take flake.nix and flake.lock from generation {number}")
            }
            Step::WriteHost { path, change, .. } => format!("record in `{}`: {change}", path.display()),
            Step::Give => "give the running machine what is recorded".into(),
            Step::UpdateLock { path, .. } => format!("replace `{}`", path.display()),
        }
    }
}

impl Plan {
    /// A plan of these steps.
    pub fn new(command: &str, machine: &MachineName, steps: Vec<Step>) -> Plan {
        Plan {
            version: PLAN_VERSION,
            command: command.into(),
            machine: machine.clone(),
            renamed: None,
            steps: steps.into_iter().map(|step| PlanStep { summary: step.summary(), step }).collect(),
        }
    }

    /// Whether the machine does not exist before it.
    pub fn creates(&self) -> bool {
        matches!(self.command.as_str(), "init" | "duplicate" | "import" | "install")
    }

    /// Whether it only ends or removes something, so that it is to be done even where nothing can be written down.
    pub fn only_frees(&self) -> bool {
        let frees = |s: &PlanStep| {
            matches!(
                s.step,
                Step::Stop
                    | Step::RemoveRoot { .. }
                    | Step::RemoveGenerations { .. }
                    | Step::ForgetGeneration { .. }
                    | Step::RemoveSecrets
                    | Step::RemoveConfig { .. }
                    | Step::RemoveLogs { .. }
            )
        };
        self.steps.iter().all(frees)
    }

    /// The names that it concerns.
    pub fn names(&self) -> impl Iterator<Item = &MachineName> {
        std::iter::once(&self.machine).chain(&self.renamed)
    }

    /// Puts a step behind the first that is meant; at the end where there is none.
    pub fn insert_after(&mut self, meant: impl Fn(&Step) -> bool, step: Step) {
        let at = self.steps.iter().position(|s| meant(&s.step)).map_or(self.steps.len(), |i| i + 1);
        self.steps.insert(at, PlanStep { summary: step.summary(), step });
    }

    /// What to do about a plan that was cut short when its first `begun` steps had begun.
    ///
    /// A machine that exists stays: its creation is finished. One that does not is taken back. What removes a machine is
    /// finished. A new generation is finished once its activation began, else taken back. A new name is given to all once a
    /// part has it; a machine is moved once it is recorded where.
    pub fn recovery(&self, begun: usize) -> Recovery {
        let begun = begun.min(self.steps.len());
        let steps: Vec<&Step> = self.steps.iter().map(|s| &s.step).collect();
        let decisive = |s: &&Step| {
            matches!(
                s,
                Step::InstallConfig { .. }
                    | Step::Activate { .. }
                    | Step::RemoveRoot { .. }
                    | Step::ForgetGeneration { .. }
                    | Step::Stop
                    | Step::Start
                    | Step::RestoreConfig { .. }
                    | Step::UpdateLock { .. }
                    | Step::WriteHost { .. }
            )
        };
        // The step begun last may be half done, so finishing repeats it.
        let committed = match self.command.as_str() {
            // A half-made folder in place cannot be: the move is atomic. Whether it happened, the next step tells.
            _ if self.creates() => {
                steps[..begun.saturating_sub(1)].iter().any(|s| matches!(s, Step::InstallConfig { .. }))
            }
            "rename" => steps[..begun].iter().any(|s| matches!(s, Step::Rename { .. })),
            // What the new driver has is whole when the machine is said to run on it.
            "move" => steps[..begun].iter().any(|s| matches!(s, Step::WriteHost { .. })),
            _ => steps[..begun].iter().any(decisive),
        };
        if committed {
            let last = begun.saturating_sub(1);
            // What fails while a part gets its new name is taken back, which may have been cut short itself: then parts that
            // had the new name have the old one. A part that has the new one is left alone.
            let first = match steps[last] {
                Step::Rename { .. } => steps.iter().position(|s| matches!(s, Step::Rename { .. })),
                _ => None,
            };
            Recovery::Finish(steps[first.unwrap_or(last)..].iter().map(|s| (*s).clone()).collect())
        } else {
            Recovery::Undo(self.inverses(begun))
        }
    }

    /// What to do when step `begun - 1` failed, as opposed to this program being killed in it: a machine that does not come
    /// up when it is made is not kept, and one whose init script fails is; a system that could not be switched to, or that the
    /// machine did not come up with, is forgotten. [`Step::AddGeneration`] here means to take the generation back.
    pub fn after_failure(&self, begun: usize) -> Vec<Step> {
        let begun = begun.min(self.steps.len());
        let failed = begun.checked_sub(1).map(|i| &self.steps[i].step);
        if matches!(failed, Some(Step::Confirm { .. })) {
            return self.inverses(begun);
        }
        let keep = matches!(failed, Some(Step::InitScript { .. } | Step::Run { .. } | Step::StartAs { .. }));
        let switched =
            self.steps[..begun.saturating_sub(1)].iter().any(|s| matches!(s.step, Step::Activate { .. }));
        if keep || self.is_moved(begun) || switched && !self.creates() {
            Vec::new()
        } else {
            self.inverses(begun)
        }
    }

    /// Whether the machine was recorded on its new driver before step `begun - 1`: from there on a move only goes forward.
    fn is_moved(&self, begun: usize) -> bool {
        let done = &self.steps[..begun.saturating_sub(1).min(self.steps.len())];
        self.command == "move" && done.iter().any(|s| matches!(s.step, Step::WriteHost { .. }))
    }

    /// Whether what is left after step `begun - 1` failed is for the next command to finish: a machine that has moved is to run on its
    /// new driver's system, and the old driver is to keep nothing of it. One that only did not start is as well as it can be.
    pub fn is_left_to_finish(&self, begun: usize) -> bool {
        let failed = begun.checked_sub(1).and_then(|i| self.steps.get(i));
        self.is_moved(begun) && failed.is_some_and(|s| !matches!(s.step, Step::Start))
    }

    fn inverses(&self, begun: usize) -> Vec<Step> {
        let steps = self.steps[..begun].iter().rev().map(|s| &s.step);
        steps
            .filter_map(|s| match s {
                Step::AddGeneration { .. } => Some(s.clone()),
                // It was stopped for its new name, or its new place, only.
                Step::Stop if matches!(self.command.as_str(), "rename" | "move") => Some(Step::Start),
                other => other.inverse(),
            })
            .collect()
    }
}

/// How an interrupted plan is brought to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Run these steps.
    Finish(Vec<Step>),
    /// Run these steps; [`Step::AddGeneration`] here means to take the generation back.
    Undo(Vec<Step>),
}

/// The journal version this program writes.
pub const JOURNAL_VERSION: u32 = 1;

/// The journal of a plan that is being carried out; written before each step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// [`JOURNAL_VERSION`] of the writer.
    pub version: u32,
    /// Codchi version of the writer.
    pub codchi: String,
    /// The plan.
    pub plan: Plan,
    /// How many steps have begun.
    pub begun: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init() -> Plan {
        Plan::new(
            "init",
            &"m".parse().unwrap(),
            vec![
                Step::Build { drv_path: "/nix/store/x.drv".into() },
                Step::CreateRoot { path: "/r".into(), uid_base: Some(1 << 20) },
                Step::AddGeneration { number: 1, toplevel: "/nix/store/t".into() },
                Step::InstallConfig { from: "/s".into(), to: "/c".into() },
                Step::Start,
                Step::InitScript { script: "/nix/store/i".into() },
            ],
        )
    }

    #[test]
    fn a_plan_prints_kind_and_summary_of_each_step() {
        insta::assert_json_snapshot!(init().steps[1], @r#"
        {
          "summary": "make the root file system `/r`, owned by ids from 1048576 on",
          "kind": "create-root",
          "path": "/r",
          "uidBase": 1048576
        }
        "#);
    }

    #[test]
    fn a_creation_cut_short_is_taken_back_until_the_machine_exists() {
        assert_eq!(init().recovery(2), Recovery::Undo(vec![Step::RemoveRoot { path: "/r".into() }]));
        let Recovery::Undo(steps) = init().recovery(4) else { panic!("kept") };
        assert!(matches!(
            steps[..],
            [Step::RemoveConfig { .. }, Step::AddGeneration { .. }, Step::RemoveRoot { .. }]
        ));
        assert_eq!(
            init().recovery(5),
            Recovery::Finish(vec![Step::Start, Step::InitScript { script: "/nix/store/i".into() }])
        );
    }

    #[test]
    fn a_rebuild_cut_short_is_finished_once_the_switch_began() {
        let t = "/nix/store/t".to_string();
        let plan = Plan::new(
            "rebuild",
            &"m".parse().unwrap(),
            vec![
                Step::AddGeneration { number: 2, toplevel: t.clone() },
                Step::Activate { number: 2, toplevel: t, how: Activation::Switch, previous: Some(1) },
            ],
        );
        assert!(
            matches!(plan.recovery(1), Recovery::Undo(s) if matches!(s[..], [Step::AddGeneration { number: 2, .. }]))
        );
        assert!(matches!(plan.recovery(2), Recovery::Finish(s) if matches!(s[..], [Step::Activate { .. }])));
    }

    #[test]
    fn a_generation_that_the_machine_does_not_come_up_with_is_forgotten() {
        let t = "/nix/store/t".to_string();
        let plan = Plan::new(
            "rebuild",
            &"m".parse().unwrap(),
            vec![
                Step::AddGeneration { number: 2, toplevel: t.clone() },
                Step::Activate { number: 2, toplevel: t, how: Activation::Switch, previous: Some(1) },
                Step::Confirm { number: 2, previous: 1, failed: Vec::new() },
                Step::UpdateLock { number: 2, path: "/c/flake.lock".into() },
            ],
        );
        assert!(matches!(plan.after_failure(3)[..], [Step::AddGeneration { number: 2, .. }]));
        assert_eq!(plan.after_failure(4), []);
        // Killed in it, it looks again.
        assert!(matches!(plan.recovery(3), Recovery::Finish(s) if matches!(s[0], Step::Confirm { .. })));
    }

    #[test]
    fn a_machine_that_does_not_come_up_is_not_kept_and_one_whose_init_script_fails_is() {
        let back = init().after_failure(5);
        assert!(matches!(
            back[..],
            [Step::Stop, Step::RemoveConfig { .. }, Step::AddGeneration { .. }, Step::RemoveRoot { .. }]
        ));
        assert_eq!(init().after_failure(6), []);
    }

    #[test]
    fn a_rename_is_finished_once_a_part_has_the_new_name_and_else_the_machine_runs_again() {
        let (a, b): (MachineName, MachineName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let part = |part| Step::Rename { part, from: a.clone(), to: b.clone() };
        let back = |part| Step::Rename { part, from: b.clone(), to: a.clone() };
        let steps =
            vec![Step::Stop, part(Part::Files), part(Part::Folder), Step::StartAs { machine: b.clone() }];
        let plan = Plan::new("rename", &a, steps);
        assert_eq!(plan.recovery(1), Recovery::Undo(vec![Step::Start]));
        let rest = vec![part(Part::Files), part(Part::Folder), Step::StartAs { machine: b.clone() }];
        assert_eq!(plan.recovery(2), Recovery::Finish(rest.clone()));
        // The files may have the old name again, where taking back the folder's was cut short.
        assert_eq!(plan.recovery(3), Recovery::Finish(rest));
        assert_eq!(plan.recovery(4), Recovery::Finish(vec![Step::StartAs { machine: b.clone() }]));
        assert_eq!(plan.after_failure(3), [back(Part::Folder), back(Part::Files), Step::Start]);
        assert_eq!(plan.after_failure(4), []);
    }

    #[test]
    fn a_move_is_taken_back_until_it_is_recorded_and_then_left_to_be_finished() {
        let (old, new): (DriverName, DriverName) = ("native".parse().unwrap(), "incus".parse().unwrap());
        let t = "/nix/store/t".to_string();
        let steps = vec![
            Step::Stop,
            Step::MoveRoot { from: old.clone(), to: new.clone(), uid_base: None, on_boot: true },
            Step::AddGeneration { number: 2, toplevel: t.clone() },
            Step::WriteHost { path: "/c/host.toml".into(), text: String::new(), change: String::new() },
            Step::Activate { number: 2, toplevel: t, how: Activation::Boot, previous: Some(1) },
            Step::RemoveRootOn { driver: old, on_boot: true },
            Step::Start,
        ];
        let rest = steps[5..].to_vec();
        let plan = Plan::new("move", &"m".parse().unwrap(), steps);
        let back = plan.after_failure(4);
        assert!(matches!(back[0], Step::AddGeneration { number: 2, .. }));
        assert_eq!(back[1..], [Step::RemoveRootOn { driver: new, on_boot: true }, Step::Start]);
        assert_eq!(
            (1..=7).map(|n| plan.is_left_to_finish(n)).collect::<Vec<_>>(),
            [false, false, false, false, true, true, false]
        );
        assert_eq!((plan.after_failure(6), plan.recovery(6)), (vec![], Recovery::Finish(rest)));
        assert_eq!(plan.after_failure(7), []);
        // Of an earlier version, which did not say whether it starts with the computer.
        let step: Step = serde_json::from_str(r#"{"kind":"remove-root-on","driver":"native"}"#).unwrap();
        assert!(matches!(step, Step::RemoveRootOn { on_boot: false, .. }));
    }

    #[test]
    fn a_plan_of_an_earlier_version_is_read() {
        let text =
            r#"{"version":1,"command":"stop","machine":"m","steps":[{"summary":"stop","kind":"stop"}]}"#;
        let plan: Plan = serde_json::from_str(text).unwrap();
        assert_eq!((plan.renamed.clone(), plan.names().count()), (None, 1));
    }

    proptest::proptest! {
        #[test]
        fn every_point_of_a_plan_has_a_recovery_that_a_journal_keeps(begun in 0usize..9) {
            let journal = Journal { version: 1, codchi: "0".into(), plan: init(), begun };
            let text = serde_json::to_string(&journal).unwrap();
            let back: Journal = serde_json::from_str(&text).unwrap();
            assert_eq!(back.plan.recovery(begun), init().recovery(begun));
        }
    }
}
