//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use codchi_core::source::Pin;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// What the exit status means.
pub const EXIT_STATUS: &str = "0 done, 1 failed, 2 wrong usage, 3 the host lacks something, 4 a person said no, 5 no such machine, \
                               6 busy, 130 interrupted. `exec` gives the command's own.";

/// Code machines: named NixOS systems on this computer that hold a project's whole development environment.
#[derive(Debug, Parser)]
#[command(
    name = "codchi",
    version,
    disable_help_subcommand = true,
    propagate_version = false,
    max_term_width = 100,
    after_help = format!("Without a command: `codchi status`. Exit status: {EXIT_STATUS}")
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Globals {
    /// Print errors only
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// Print more; twice: everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    pub verbose: u8,
    /// Print one JSON document on stdout
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// No colours; NO_COLOR does the same
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_color: bool,
    /// Answer yes to questions about this command
    #[arg(long, short = 'y', global = true, help_heading = "Everywhere")]
    pub yes: bool,
    /// Never ask; fail with the flag that answers
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub no_input: bool,
    /// Print the plan and change nothing
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub dry_run: bool,
    /// Grant a module something it asks of the host, such as `mount:/src`
    #[arg(long, global = true, value_name = "ITEM", help_heading = "Everywhere")]
    pub accept: Vec<String>,
    /// Refuse a module something that it can do without, such as `nix-config`
    #[arg(long, global = true, value_name = "ITEM", help_heading = "Everywhere")]
    pub refuse: Vec<String>,
}

/// What Nix is told beyond what Codchi says.
#[derive(Clone, Debug, Default, Args)]
pub struct NixFlags {
    /// Where credentials of private sources are: `git`, `netrc[:FILE]`, `env:VARIABLE` or `file:PATH`, of one host `HOST=...`
    #[arg(long, value_name = "[HOST=]WHERE")]
    pub auth_from: Vec<String>,
    /// Use no network
    #[arg(long, help_heading = "Nix")]
    pub offline: bool,
    /// Show Nix's whole trace
    #[arg(long, help_heading = "Nix")]
    pub show_trace: bool,
    /// Replace an input for this call
    #[arg(long, num_args = 2, value_names = ["INPUT", "REFERENCE"], help_heading = "Nix")]
    pub override_input: Vec<String>,
    /// Build on other computers
    #[arg(long, value_name = "BUILDERS", help_heading = "Nix")]
    pub builders: Option<String>,
}

/// Values of secrets, which nobody is asked for then.
#[derive(Clone, Debug, Default, Args)]
pub struct SecretFlags {
    /// A secret's value, read from a file, or with `-` from standard input
    #[arg(long, value_name = "NAME=@FILE", help_heading = "Secrets")]
    pub secret: Vec<String>,
    /// A secret's value, read from an environment variable
    #[arg(long, value_name = "NAME=VARIABLE", help_heading = "Secrets")]
    pub secret_env: Vec<String>,
    /// A secret's value, as a shell command prints it
    #[arg(long, value_name = "NAME=COMMAND", help_heading = "Secrets")]
    pub secret_command: Vec<String>,
}

/// Where packages and options come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Base {
    /// The Nix packages collection
    Nixpkgs,
    /// The built-in base, from a Debian mirror
    Debian,
}

impl Base {
    pub fn as_str(self) -> &'static str {
        match self {
            Base::Nixpkgs => "nixpkgs",
            Base::Debian => "debian",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a machine
    Init(Init),
    /// Create a machine, and in it a clone of the repository that its module comes from
    Clone(Clone),
    /// Run a command in a machine, starting it when stopped
    #[command(visible_alias = "run")]
    Exec(Exec),
    /// Open the user's login shell in a machine
    Shell(Shell),
    /// Put a built system in force as a machine, as the configuration of a NixOS host declares it
    #[command(hide = true)]
    Install(Install),
    /// Show machines: state, base, generation, whether anything changed
    Status(Status),
    /// List the names of machines
    #[command(visible_alias = "ls")]
    List,
    /// Start machines
    Start(Start),
    /// Stop machines
    Stop(Names),
    /// Stop and start machines
    Restart(Names),
    /// Show a machine's log
    Logs(Logs),
    /// Apply what a machine's flake and modules say
    Rebuild(Rebuild),
    /// Move a machine's inputs to their newest versions
    Update(Update),
    /// Edit what a machine is made of
    Module(Module),
    /// List what a machine can go back to
    Generations(Name),
    /// Go back to an earlier generation
    Rollback(Rollback),
    /// Give a machine another name; one that runs is stopped for that and started again
    Rename(Rename),
    /// Make a second machine with the same system and a copy of all files
    Duplicate(Duplicate),
    /// Have a machine run on another driver, with all its files
    Move(Move),
    /// Export a machine: its files, and a flake that rebuilds it on any NixOS
    Tar(Tar),
    /// Make a machine from an export
    Import(Import),
    /// Show what differs between two generations
    Diff(Diff),
    /// Look after the secrets of a machine
    Secrets(SecretsArgs),
    /// Delete machines with all their files
    #[command(visible_alias = "rm")]
    Delete(Names),
    /// Folders of this computer in a machine
    Mount(Mount),
    /// Ports of this computer that lead into a machine
    Port(Port),
    /// Forget old generations of machines, and give free what of the store nothing holds
    Gc(Gc),
    /// Show what machines take of the disk: their own files, and what they have of the store, alone and shared
    Du(Du),
    /// Show how an option of a machine is set
    Option(OptionArgs),
    /// Look after the store
    Store(Store),
    /// Say what this host lacks, and how to get it
    Doctor(Doctor),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Keep a machine running (started by `start`)
    #[command(hide = true)]
    Supervise {
        /// The machine
        name: String,
    },
    /// Parts that other programs call
    #[command(hide = true)]
    Plumbing(Plumbing),
}

#[derive(Debug, Args)]
pub struct Init {
    /// Name of the new machine
    pub name: String,
    /// A folder, a git URL or a flake reference, with `#MODULE` if you like; none: an empty machine
    pub source: Option<String>,
    /// Modules of the source, by attribute name; none: its only one, or you are asked
    #[arg(value_name = "MODULE")]
    pub modules: Vec<String>,
    /// What the machine runs on
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// On another host, as the engine's own client calls it, or on a member of its cluster
    #[arg(long, value_name = "NAME[:MEMBER]")]
    pub remote: Option<String>,
    /// Where packages and options come from; CODCHI_BASE does the same
    #[arg(long, value_enum)]
    pub base: Option<Base>,
    /// Use the nixpkgs of the source instead of Codchi's
    #[arg(long, value_name = "INPUT")]
    pub nixpkgs_from: Option<String>,
    #[command(flatten)]
    pub pin: Pinned,
    /// Do not start it
    #[arg(long)]
    pub no_start: bool,
    /// Do not run the module's init script
    #[arg(long)]
    pub no_init_script: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
    #[command(flatten)]
    pub nix: NixFlags,
    /// Then run this command inside; its status becomes codchi's
    #[arg(last = true, value_name = "CMD")]
    pub cmd: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Clone {
    #[command(flatten)]
    pub init: Init,
    /// The folder of the clone, below the home of the machine's user; none: named as the repository
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<String>,
    /// Only so many commits
    #[arg(long, value_name = "COMMITS", value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: Option<u32>,
    /// Only one branch
    #[arg(long)]
    pub single_branch: bool,
    /// Clone submodules, too
    #[arg(long)]
    pub recurse_submodules: bool,
    /// The module stays that of the URL, instead of what the clone holds
    #[arg(long)]
    pub keep_remote: bool,
}

#[derive(Debug, Args)]
pub struct Install {
    /// The machine; made when there is none
    pub name: String,
    /// Its system: a path in the store
    #[arg(long, value_name = "PATH")]
    pub toplevel: PathBuf,
    /// Start it
    #[arg(long)]
    pub start: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
}

/// Which version of a source is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Pinned {
    /// Follow this branch of the source
    #[arg(long, group = "pin")]
    pub branch: Option<String>,
    /// Use this tag of the source
    #[arg(long, group = "pin")]
    pub tag: Option<String>,
    /// Use exactly this commit of the source
    #[arg(long, group = "pin")]
    pub commit: Option<String>,
}

impl Pinned {
    /// The pin that was chosen.
    pub fn chosen(&self) -> Option<Pin> {
        match (&self.branch, &self.tag, &self.commit) {
            (Some(b), _, _) => Some(Pin::Branch(b.clone())),
            (_, Some(t), _) => Some(Pin::Tag(t.clone())),
            (_, _, Some(c)) => Some(Pin::Commit(c.clone())),
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
pub struct Exec {
    /// The machine
    pub name: String,
    /// As this user instead of the machine's
    #[arg(long, short)]
    pub user: Option<String>,
    /// In this directory instead of the user's home
    #[arg(long, short = 'C', value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// With this variable set
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// With a terminal, whatever stdin is
    #[arg(long, short, conflicts_with = "no_tty")]
    pub tty: bool,
    /// Without a terminal, whatever stdin is
    #[arg(long, short = 'T')]
    pub no_tty: bool,
    /// Not where the machine would have to be started for it, and without a look at the caller's session
    #[arg(long, hide = true)]
    pub only_running: bool,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub cmd: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Shell {
    /// The machine
    pub name: String,
    /// As this user instead of the machine's
    #[arg(long, short)]
    pub user: Option<String>,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Only this machine
    pub name: Option<String>,
    /// Again whenever something has changed, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Name {
    /// The machine
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Names {
    /// The machines
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Start {
    /// The machines
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Also whenever this computer starts (needs systemd)
    #[arg(long, conflicts_with = "no_on_boot")]
    pub on_boot: bool,
    /// Not any more when this computer starts
    #[arg(long)]
    pub no_on_boot: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The machine
    pub name: String,
    /// Go on printing what is added
    #[arg(long, short)]
    pub follow: bool,
    /// Only this unit
    #[arg(long)]
    pub unit: Option<String>,
    /// The console's log instead of the journal
    #[arg(long, conflicts_with = "unit")]
    pub console: bool,
}

#[derive(Debug, Args)]
pub struct Rebuild {
    /// The machines
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub names: Vec<String>,
    /// All machines
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Move the inputs to their newest versions first
    #[arg(long)]
    pub update: bool,
    /// Use it from the next start on
    #[arg(long, conflicts_with = "build_only")]
    pub boot: bool,
    /// Only build
    #[arg(long)]
    pub build_only: bool,
    /// Show the difference and ask before anything changes
    #[arg(long, conflicts_with = "build_only")]
    pub ask: bool,
    /// Stay on the new generation though units fail in it that ran before
    #[arg(long)]
    pub no_rollback: bool,
    /// After a rollback: take flake.nix and flake.lock of that generation first
    #[arg(long)]
    pub restore_lock: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct Update {
    /// The machine
    pub name: String,
    /// Only these inputs
    #[arg(value_name = "INPUT")]
    pub inputs: Vec<String>,
    /// Only tell what would move
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct Module {
    #[command(subcommand)]
    pub command: ModuleCommand,
}

#[derive(Debug, Subcommand)]
pub enum ModuleCommand {
    /// List modules in their order, with their sources
    List(Name),
    /// Add modules of a source
    Add(ModuleAdd),
    /// Point an input somewhere else, or at another version; choose whose nixpkgs is used
    Set(ModuleSet),
    /// Give an input another name
    Rename {
        /// The machine
        name: String,
        /// The input as it is called now
        old: String,
        /// What it is to be called
        new: String,
    },
    /// Remove an input with its modules, or one module of it
    Remove {
        /// The machine
        name: String,
        /// `INPUT`, or `INPUT.nixosModules.NAME`
        module: String,
    },
}

#[derive(Debug, Args)]
pub struct ModuleAdd {
    /// The machine
    pub name: String,
    /// A folder, a git URL or a flake reference, with `#MODULE` if you like
    pub source: String,
    /// Modules of the source, by attribute name; none: its only one, or you are asked
    #[arg(value_name = "MODULE")]
    pub modules: Vec<String>,
    /// Name of the input; none: that of the repository
    #[arg(long = "as", value_name = "INPUT")]
    pub input: Option<String>,
    #[command(flatten)]
    pub pin: Pinned,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct ModuleSet {
    /// The machine
    pub name: String,
    /// The input to change
    #[arg(required_unless_present = "nixpkgs_from")]
    pub input: Option<String>,
    /// Where it comes from now; none: the address stays
    pub source: Option<String>,
    #[command(flatten)]
    pub pin: Pinned,
    /// No branch, tag or commit any more
    #[arg(long, group = "pin", requires = "input")]
    pub unpin: bool,
    /// Take what git tracks in this folder of the machine, at each rebuild
    #[arg(long, value_name = "FOLDER", requires = "input", conflicts_with_all = ["source", "pin", "no_checkout"])]
    pub checkout: Option<String>,
    /// Take it from its address again
    #[arg(long, requires = "input", conflicts_with_all = ["source", "pin"])]
    pub no_checkout: bool,
    /// Use the nixpkgs of this input; `codchi`: Codchi's own
    #[arg(long, value_name = "INPUT")]
    pub nixpkgs_from: Option<String>,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct Rollback {
    /// The machine
    pub name: String,
    /// To this generation instead of the one before
    #[arg(long, value_name = "GENERATION")]
    pub to: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("rule").multiple(true),
    after_help = "The generation in force, the one that runs and the one before stay; `--keep 1` lets go of the one before, too. \
                        Without `--older-than` and `--keep` no generation is forgotten."
)]
pub struct Gc {
    /// Only generations of these machines; none: of all
    #[arg(conflicts_with = "all", requires = "rule")]
    pub names: Vec<String>,
    /// Generations of all machines
    #[arg(long, requires = "rule")]
    pub all: bool,
    /// Forget generations older than this: `30d`, `12h`, `2w`
    #[arg(long, value_name = "AGE", value_parser = age, group = "rule")]
    pub older_than: Option<u64>,
    /// Keep the newest so many generations of each machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), group = "rule")]
    pub keep: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Du {
    /// Only these machines
    pub names: Vec<String>,
}

/// An age such as `30d`, in seconds.
fn age(text: &str) -> Result<u64, String> {
    codchi_core::text::age(text).ok_or_else(|| "give a number with a unit, as `30d`, `12h` or `2w`".into())
}

#[derive(Debug, Args)]
pub struct Diff {
    /// The machine
    pub name: String,
    /// From this generation; none: the one before the current
    pub from: Option<u64>,
    /// To this generation; none: the current one
    pub to: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Mount {
    #[command(subcommand)]
    pub command: MountCommand,
}

#[derive(Debug, Subcommand)]
pub enum MountCommand {
    /// Have a folder or file in a machine, at once and at each start; its owner is the machine's user there
    Add {
        /// The machine
        name: String,
        /// The path on this computer and the path in the machine; with :ro it is only read
        #[arg(value_name = "HOST:GUEST[:ro]")]
        folder: String,
        /// Start the machine also where this computer lacks the folder
        #[arg(long)]
        optional: bool,
    },
    /// Have a folder in a machine no more, whoever asked for it
    #[command(visible_alias = "rm")]
    Remove {
        /// The machine
        name: String,
        /// The path in the machine
        #[arg(value_name = "GUEST")]
        path: String,
    },
    /// List the folders that a machine has, and those that it should
    #[command(visible_alias = "ls")]
    List {
        /// The machine
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Port {
    #[command(subcommand)]
    pub command: PortCommand,
}

#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Let a port on 127.0.0.1 lead into a machine, at once and at each start
    Add {
        /// The machine
        name: String,
        /// HOST:GUEST, or one number for both; with /udp where that is meant
        #[arg(value_name = "HOST:GUEST[/udp]")]
        port: String,
    },
    /// Let a port lead into a machine no more, whoever asked for it
    #[command(visible_alias = "rm")]
    Remove {
        /// The machine
        name: String,
        /// The port on this computer
        #[arg(value_name = "HOST[/udp]")]
        port: String,
    },
    /// List the ports that lead into a machine, and those that should
    #[command(visible_alias = "ls")]
    List {
        /// The machine
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct Rename {
    /// The machine
    pub name: String,
    /// Its new name
    pub to: String,
}

#[derive(Debug, Args)]
pub struct Duplicate {
    /// The machine; one that runs is held still while its files are copied
    pub name: String,
    /// The name of the copy
    pub to: String,
    /// Start the copy
    #[arg(long)]
    pub start: bool,
}

#[derive(Debug, Args)]
pub struct Move {
    /// The machine; one that runs is stopped and started again
    pub name: String,
    /// What it shall run on
    #[arg(long)]
    pub driver: String,
    /// Leave behind what was added to it by hand on its driver, such as snapshots
    #[arg(long)]
    pub leave_extras: bool,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct Tar {
    /// The machine; one that runs is held still meanwhile
    pub name: String,
    /// The file; compressed as its name says: .tar.zst, .tar.gz, .tar.xz. `-`: stdout, not compressed
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Import {
    /// What `codchi tar` wrote
    pub file: PathBuf,
    /// The machine's name; none: the one it had
    pub name: Option<String>,
    /// What it shall run on; none: what it ran on
    #[arg(long)]
    pub driver: Option<String>,
    /// Start it
    #[arg(long)]
    pub start: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
    #[command(flatten)]
    pub nix: NixFlags,
}

#[derive(Debug, Args)]
pub struct SecretsArgs {
    #[command(subcommand)]
    pub command: SecretsCommand,
}

#[derive(Debug, Subcommand)]
pub enum SecretsCommand {
    /// List a machine's secrets, without their values
    #[command(visible_alias = "ls")]
    List(Name),
    /// Print the value of a secret
    Get(SecretName),
    /// Give a secret a value; services that use it are restarted
    Set(SecretSet),
    /// Remove the value of a secret
    Unset(SecretName),
    /// Change the value of a secret in your editor
    Edit(SecretName),
}

#[derive(Debug, Args)]
pub struct SecretName {
    /// The machine
    pub name: String,
    /// The secret
    pub secret: String,
}

#[derive(Debug, Args)]
pub struct SecretSet {
    /// The machine
    pub name: String,
    /// The secret
    pub secret: String,
    /// `@FILE`, or `-` for standard input; none: you are asked, without a terminal standard input is read
    #[arg(value_name = "@FILE")]
    pub from: Option<String>,
    /// Take the value of an environment variable
    #[arg(long, value_name = "VARIABLE", conflicts_with_all = ["from", "from_command"])]
    pub from_env: Option<String>,
    /// Take what a shell command prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "from")]
    pub from_command: Option<String>,
}

#[derive(Debug, Args)]
pub struct OptionArgs {
    /// The machine
    pub name: String,
    /// The option, such as `services.openssh.enable`
    pub path: String,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Mend what can be mended without root and without risk
    #[arg(long)]
    pub fix: bool,
}

#[derive(Debug, Args)]
pub struct Store {
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Show which store is in use and what it holds
    Status,
    /// Run a program where the store is at /nix
    Shell {
        /// As the store's owner
        #[arg(long, hide = true)]
        as_root: bool,
        /// The program and its arguments; none: your shell
        #[arg(last = true, value_name = "CMD")]
        cmd: Vec<OsString>,
    },
    /// Check the store and mend what is broken
    Repair,
    /// Remove the store and everything else Codchi made; refused while there are machines
    Remove {
        /// Delete the machines as well
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub struct Plumbing {
    #[command(subcommand)]
    pub command: PlumbingCommand,
}

#[derive(Debug, Subcommand)]
pub enum PlumbingCommand {
    /// Hand out the secrets of a machine
    Secrets { name: String },
    /// Become the program of a machine that an engine starts
    #[command(disable_help_flag = true)]
    Emulator {
        /// The program
        program: PathBuf,
        /// What the engine tells it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Print what this computer has of what machines need
    Probe,
    /// Remove a tree with files of subordinate ids
    RemoveTree { path: PathBuf },
    /// Print how many bytes a tree with files of subordinate ids takes
    MeasureTree { path: PathBuf },
    /// Copy a tree with files of subordinate ids to an empty folder
    CopyTree { from: PathBuf, to: PathBuf },
    /// Write a tree with files of subordinate ids to stdout, as a tar
    PackTree {
        root: PathBuf,
        /// What comes first
        #[arg(long)]
        head: PathBuf,
        /// Where that lies in the tar
        #[arg(long)]
        at: String,
        /// A further folder, and where it lies in the tar
        #[arg(long, num_args = 2)]
        input: Vec<OsString>,
        #[arg(long)]
        compression: String,
        /// The user and group of the machine whose files are the caller's here
        #[arg(long, value_parser = account)]
        caller: Option<(u32, u32)>,
        /// The root is that of the container with this first process
        #[arg(long)]
        inside: Option<i32>,
    },
    /// Make a tree with files of subordinate ids from a tar on stdin
    UnpackTree {
        root: PathBuf,
        /// What is left out of it
        #[arg(long)]
        without: String,
        /// The root is that of the container with this first process
        #[arg(long)]
        inside: Option<i32>,
    },
    /// Hold a running machine still until stdin ends
    Hold {
        /// Its runtime directory
        dir: PathBuf,
    },
    /// Ask the git servers of machines whether sources moved on
    CheckUpdates {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Write the man pages
    Man { dir: PathBuf },
    /// Write the JSON schemas
    Schemas { dir: PathBuf },
    /// Write the command reference
    Reference { file: PathBuf },
}

impl PlumbingCommand {
    /// Whether it is about machines, whose folders it must know.
    pub fn needs_app(&self) -> bool {
        matches!(self, PlumbingCommand::CheckUpdates { .. } | PlumbingCommand::Secrets { .. })
    }
}

/// `USER:GROUP`, in numbers.
fn account(text: &str) -> Result<(u32, u32), String> {
    let ids = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    ids.ok_or_else(|| "give two numbers, as `1000:100`".into())
}
