//! Secrets of machines: where values come from, and what a machine gets.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use codchi_core::manifest::{Needs, Secret};
use codchi_core::name::MachineName;
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_secrets::{Ask, Bundle, MAX_VALUE, Private, SecretsError, Vault};

use crate::app::App;
use crate::cli::SecretFlags;
use crate::failure::{Failure, Result};
use crate::prompt;

/// Where a value comes from. Never the command line: everyone on the host can read that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// A variable of this process.
    Variable(String),
    /// What a shell command prints, such as that of a password manager.
    Command(String),
}

/// Sources by the name of the secret.
pub type Given = BTreeMap<String, Source>;

/// Reads the flags; the values are read when the machine's secrets are known.
pub fn given(flags: &SecretFlags) -> Result<Given> {
    let mut all = Given::new();
    let mut add = |name: &str, source: Source| {
        if source == Source::Stdin && all.values().any(|s| *s == Source::Stdin) {
            return Err(Failure::usage("only one secret can be read from standard input"));
        }
        match all.insert(name.into(), source) {
            None => Ok(()),
            Some(_) => {
                Err(Failure::usage(format!("the secret `{}` is given twice", text::printable_line(name))))
            }
        }
    };
    for arg in &flags.secret {
        match arg.split_once('=') {
            Some((name, "-")) if !name.is_empty() => add(name, Source::Stdin)?,
            Some((name, file)) if !name.is_empty() && file.len() > 1 && file.starts_with('@') => {
                add(name, Source::File(file[1..].into()))?
            }
            // A value as argument could be read by everyone on this host; it is not repeated here either.
            _ => {
                return Err(Failure::usage(
                    "`--secret` takes a file or standard input: `--secret NAME=@FILE`, `--secret NAME=-`",
                )
                .hint("a value on the command line could be read by everyone on this host"));
            }
        }
    }
    for (list, flag, what) in [
        (&flags.secret_env, "--secret-env", "VARIABLE"),
        (&flags.secret_command, "--secret-command", "COMMAND"),
    ] {
        for arg in list {
            match arg.split_once('=') {
                Some((name, from)) if !name.is_empty() && !from.is_empty() => add(
                    name,
                    if flag == "--secret-env" {
                        Source::Variable(from.into())
                    } else {
                        Source::Command(from.into())
                    },
                )?,
                _ => return Err(Failure::usage(format!("`{flag}` takes `NAME={what}`"))),
            }
        }
    }
    Ok(all)
}

/// Refuses names that the machine does not declare.
pub fn known<'a>(needs: &Needs, names: impl Iterator<Item = &'a String>) -> Result<()> {
    for name in names {
        declared(needs, name)?;
    }
    Ok(())
}

/// What the machine declares of a secret.
pub fn declared<'a>(needs: &'a Needs, name: &str) -> Result<&'a Secret> {
    needs.secrets.get(name).ok_or_else(|| {
        let near = text::nearest(name, needs.secrets.keys().map(String::as_str), 1);
        let failure = Failure::new(
            Kind::NotFound,
            format!("the machine has no secret `{}`", text::printable_line(name)),
        );
        match near.first() {
            Some(n) => failure.hint(format!("did you mean `{n}`?")),
            None => failure,
        }
    })
}

/// Reads a value from where it is.
pub fn read(source: &Source, name: &str) -> Result<Private> {
    let what = |from: &str| format!("the secret `{}` cannot be read from {from}", text::printable_line(name));
    let io = |from: String| move |e: std::io::Error| Failure::failed(format!("{}: {e}", what(&from)));
    match source {
        Source::File(path) => {
            let mut file = codchi_fs::open(path)?;
            Private::read_from(&mut file, MAX_VALUE).map_err(io(format!("`{}`", path.display())))
        }
        Source::Stdin => {
            Private::read_from(&mut std::io::stdin().lock(), MAX_VALUE).map_err(io("standard input".into()))
        }
        Source::Variable(variable) => {
            use std::os::unix::ffi::OsStrExt;
            let shown = text::printable_line(variable);
            let value = std::env::var_os(variable)
                .ok_or_else(|| Failure::usage(format!("{}: it is not set", what(&format!("`${shown}`")))))?;
            Private::copy(value.as_bytes()).map_err(io(format!("`${shown}`")))
        }
        Source::Command(command) => {
            let shown = format!("`{}`", text::printable_line(command));
            let mut child = Command::new("sh")
                .args(["-c", command])
                .stdout(Stdio::piped())
                .spawn()
                .map_err(io(shown.clone()))?;
            let out = match &mut child.stdout {
                Some(stdout) => Private::read_from(stdout, MAX_VALUE).map_err(io(shown.clone()))?,
                None => return Err(Failure::failed(what(&shown))),
            };
            let status = child.wait().map_err(io(shown.clone()))?;
            if !status.success() {
                return Err(Failure::failed(format!("{}: it ended with {status}", what(&shown))));
            }
            Ok(out)
        }
    }
}

/// Makes a value what its kind takes, and checks it. A file is kept to the byte; of other kinds one line break at the end is not
/// meant, as the shell has it.
pub fn fit(name: &str, secret: &Secret, mut value: Private) -> Result<Private> {
    if secret.kind != "file" && value.last() == Some(&b'\n') {
        let crlf = value.ends_with(b"\r\n");
        let len = value.len() - if crlf { 2 } else { 1 };
        value.truncate(len);
    }
    check(name, secret, &value)?;
    Ok(value)
}

fn check(name: &str, secret: &Secret, value: &[u8]) -> Result<()> {
    let shown = text::printable_line(name);
    if secret.kind == "env" && value.contains(&0) {
        return Err(Failure::failed(format!("the secret `{shown}` holds a NUL byte, which no variable can")));
    }
    let Some(pattern) = &secret.check else { return Ok(()) };
    let whole = format!("^(?:{pattern})$");
    let regex = regex_lite::Regex::new(&whole).map_err(|e| {
        Failure::failed(format!("`codchi.secrets.{shown}.check` is not a regular expression: {e}"))
    })?;
    if std::str::from_utf8(value).is_ok_and(|v| regex.is_match(v)) {
        return Ok(());
    }
    // The value is not shown, wherever this is printed.
    Err(Failure::failed(format!("the secret `{shown}` does not look as it should")).hint(format!(
        "it has to match `{}`: {}",
        text::printable_line(pattern),
        described(secret)
    )))
}

fn described(secret: &Secret) -> String {
    text::printable_line(&secret.description)
}

/// Asks a person for a value until it fits; none: the person gave none.
fn ask(app: &App, name: &str, secret: &Secret, or: &str) -> Result<Option<Private>> {
    loop {
        app.printer.say(&format!("`{}`: {}", text::printable_line(name), described(secret)));
        let many = secret.kind == "file";
        let end = if many { "; Ctrl-D on an empty line ends it" } else { "" };
        let Some(value) = prompt::secret(app, &format!("its value ({or}{end}):"), many) else {
            return Err(Failure::new(Kind::Declined, "no value was given")
                .hint("type one, or have it read from a file: `@FILE`"));
        };
        if value.is_empty() {
            return Ok(None);
        }
        match fit(name, secret, value) {
            Ok(value) => return Ok(Some(value)),
            Err(failure) => {
                app.printer.warn(&failure.message);
                for hint in &failure.hints {
                    app.printer.hint(hint);
                }
            }
        }
    }
}

/// Asks for one secret that a person wants to set.
pub fn ask_one(app: &App, name: &str, secret: &Secret, is_set: bool) -> Result<Option<Private>> {
    ask(app, name, secret, if is_set { "empty: keep the one it has" } else { "empty: none" })
}

/// The values that are new: those given, and those a person is asked for because nothing else gives them. `have` are the names
/// that the vault has; `all` asks also for what is not required.
pub fn gather(
    app: &App,
    name: Option<&MachineName>,
    needs: &Needs,
    given: &Given,
    have: &[String],
    all: bool,
) -> Result<Bundle> {
    known(needs, given.keys())?;
    let mut new = Bundle::new();
    for (name, source) in given {
        let value = fit(name, declared(needs, name)?, read(source, name)?)?;
        new.insert(name.as_str(), value);
    }
    // What is kept has to fit what the module asks for now.
    let mut unfit: Vec<(&str, Failure)> = Vec::new();
    let checked =
        |n: &String| new.get(n).is_none() && needs.secrets.get(n).is_some_and(|s| s.check.is_some());
    if let Some(machine) = name
        && have.iter().any(checked)
    {
        let stored = stored(app, machine)?;
        for (name, secret) in needs.secrets.iter().filter(|(n, _)| checked(n)) {
            if let Some(Err(failure)) = stored.get(name).map(|v| check(name, secret, v)) {
                unfit.push((name, failure));
            }
        }
    }
    let mut missing: Option<Failure> = None;
    for (name, secret) in &needs.secrets {
        let bad = unfit.iter().any(|(n, _)| n == name);
        if new.get(name).is_some() || have.contains(name) && !bad {
            continue;
        }
        if !bad && (secret.default.is_some() || !(secret.required || all && app.can_ask())) {
            continue;
        }
        if !app.can_ask() {
            let failure = missing.get_or_insert_with(|| {
                Failure::new(Kind::Declined, "the machine needs secrets that only you can give")
            });
            let shown = text::printable_line(name);
            let why = if bad { "the one it has does not match any more" } else { &described(secret) };
            failure.hints.push(format!("`--secret {shown}=@FILE` gives `{shown}`: {why}"));
            continue;
        }
        let or = if secret.required { "required" } else { "empty: none" };
        match ask(app, name, secret, or)? {
            Some(value) => new.insert(name.as_str(), value),
            None if secret.required => {
                let shown = text::printable_line(name);
                return Err(Failure::new(Kind::Declined, format!("the machine needs the secret `{shown}`"))
                    .hint(format!("`--secret {shown}=@FILE` gives it from a file")));
            }
            None => {}
        }
    }
    match missing {
        None => Ok(new),
        Some(failure) => Err(failure
            .hint("`NAME=-` reads standard input; `--secret-env NAME=VARIABLE` and `--secret-command NAME=COMMAND` do what they say")),
    }
}

/// Works with the vault. Its Secret Service client has threads of its own: not for `exec` and `supervise`.
pub fn with_vault<T>(app: &App, work: impl FnOnce(&Vault<'_>) -> codchi_secrets::Result<T>) -> Result<T> {
    // Neither a core dump nor another process of the same user shows what is in this one's memory.
    let _ = codchi_sys::identity::set_dumpable(false);
    let passphrase = |new: bool| prompt::passphrase(app, new);
    let ask = match (app.globals.no_input, app.can_ask()) {
        (true, _) => Ask::Nobody,
        (false, true) => Ask::Person(&passphrase),
        (false, false) => Ask::Desktop,
    };
    Ok(work(&Vault::new(&app.dirs, &app.settings.secrets, ask))?)
}

/// The names of a machine's secrets that have a value. Nothing is opened for it.
pub fn names(app: &App, machine: &MachineName) -> Result<Vec<String>> {
    Ok(Vault::new(&app.dirs, &app.settings.secrets, Ask::Nobody).names(machine)?)
}

/// All values of a machine. A process of its own reads them: the keyring's client has threads, which a process that enters
/// namespaces or passes signals on may not have.
pub fn stored(app: &App, machine: &MachineName) -> Result<Bundle> {
    if names(app, machine)?.is_empty() {
        return Ok(Bundle::new());
    }
    read_stored(&app.program, machine, app.globals.no_input)
}

fn read_stored(program: &std::path::Path, machine: &MachineName, no_input: bool) -> Result<Bundle> {
    let _ = codchi_sys::identity::set_dumpable(false);
    let failed = |e: String| Failure::failed(format!("the secrets of `{machine}` cannot be read: {e}"));
    let ended = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => failed("what was to read them ended".into()),
        _ => failed(e.to_string()),
    };
    let mut child = Command::new(program)
        .args(no_input.then_some("--no-input"))
        .args(["plumbing", "secrets", machine.as_str()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut answer = || -> Result<Bundle> {
        let stdout = child.stdout.as_mut().ok_or_else(|| failed("no answer".into()))?;
        let mut status = [0];
        stdout.read_exact(&mut status).map_err(ended)?;
        if status[0] == 0 {
            return Ok(Bundle::receive(stdout)?);
        }
        let mut said = String::new();
        stdout.read_to_string(&mut said).map_err(|e| failed(e.to_string()))?;
        let mut lines = said.lines().map(String::from);
        let kind = [Kind::Host, Kind::Declined, Kind::Interrupted]
            .into_iter()
            .find(|k| k.exit_status() == status[0])
            .unwrap_or(Kind::Failed);
        let mut failure = Failure::new(kind, lines.next().unwrap_or_default());
        failure.hints.extend(lines);
        Err(failure)
    };
    let answer = answer();
    let _ = child.wait();
    answer
}

/// The other side: answers on standard output, which nobody else may read.
pub fn print_stored(app: &App, machine: &MachineName) -> Result<()> {
    use std::io::IsTerminal;
    let mut out = std::io::stdout();
    if out.is_terminal() {
        return Err(Failure::usage("this is for other programs; `codchi secrets get` shows a secret"));
    }
    let failed = |e: std::io::Error| Failure::failed(format!("cannot answer: {e}"));
    match with_vault(app, |vault| vault.load(machine)) {
        Ok(bundle) => {
            out.write_all(&[0]).map_err(failed)?;
            // Past the buffer of standard output, which would keep a copy.
            out.flush().map_err(failed)?;
            let mut pipe =
                std::fs::File::from(rustix::io::dup(rustix::stdio::stdout()).map_err(|e| failed(e.into()))?);
            Ok(bundle.send(&mut pipe)?)
        }
        Err(failure) => {
            out.write_all(&[failure.kind.exit_status().max(1)]).map_err(failed)?;
            writeln!(out, "{}", failure.message).map_err(failed)?;
            for hint in &failure.hints {
                writeln!(out, "{hint}").map_err(failed)?;
            }
            out.flush().map_err(failed)
        }
    }
}

/// What a machine with these needs gets: the values it has, defaults, and what is the host's own and was granted.
///
/// # Errors
/// One that is required has neither.
pub fn of(app: &App, machine: &MachineName, needs: &Needs, granted: &[String]) -> Result<Bundle> {
    let mut all = crate::hostsecrets::of(app, needs, granted)?;
    if needs.secrets.is_empty() {
        return Ok(all);
    }
    let mut stored = stored(app, machine)?;
    let mut missing: Option<Failure> = None;
    for (name, secret) in &needs.secrets {
        if let Some(value) = stored.remove(name) {
            all.insert(name.as_str(), value);
        } else if let Some(default) = &secret.default {
            let value = Private::copy(default.as_bytes()).map_err(SecretsError::io("get memory"))?;
            all.insert(name.as_str(), value);
        } else if secret.required {
            let shown = text::printable_line(name);
            let failure = missing.get_or_insert_with(|| {
                Failure::new(Kind::Declined, format!("`{machine}` needs secrets that have no value"))
            });
            failure
                .hints
                .push(format!("`codchi secrets set {machine} {shown}` sets it: {}", described(secret)));
        }
    }
    missing.map_or(Ok(all), Err)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret(kind: &str, check: Option<&str>) -> Secret {
        Secret {
            description: "d".into(),
            kind: kind.into(),
            path: None,
            owner: "root".into(),
            mode: "0400".into(),
            required: true,
            default: None,
            check: check.map(Into::into),
            services: vec![],
            user_services: vec![],
        }
    }

    fn fitted(kind: &str, check: Option<&str>, value: &[u8]) -> Option<Vec<u8>> {
        fit("S", &secret(kind, check), Private::copy(value).unwrap()).ok().map(|v| v.to_vec())
    }

    #[test]
    fn a_line_break_at_the_end_belongs_to_files_only() {
        assert_eq!(fitted("env", None, b"a\n"), Some(b"a".to_vec()));
        assert_eq!(fitted("credential", None, b"a\r\n"), Some(b"a".to_vec()));
        assert_eq!(fitted("env", None, b"a\n\n"), Some(b"a\n".to_vec()));
        assert_eq!(fitted("file", None, b"a\n"), Some(b"a\n".to_vec()));
    }

    #[test]
    fn the_whole_value_has_to_match() {
        assert_eq!(fitted("env", Some("a|bc"), b"bc"), Some(b"bc".to_vec()));
        for bad in [&b"abc"[..], b"b", b"", b"bc\nx", b"\xff"] {
            assert_eq!(fitted("env", Some("a|bc"), bad), None, "{bad:?}");
        }
        assert_eq!(fitted("env", None, b"a\0b"), None);
    }

    #[test]
    fn a_failed_check_never_shows_the_value() {
        let e = fit("S", &secret("env", Some("x")), Private::copy(b"hunter2").unwrap()).unwrap_err();
        assert!(!format!("{e:?}").contains("hunter2"));
    }

    #[test]
    fn sources_are_read_from_flags_and_never_a_value() {
        let flags = |a: &[&str]| SecretFlags {
            secret: a.iter().map(|s| s.to_string()).collect(),
            secret_env: vec!["B=VAR".into()],
            secret_command: vec!["C=pass show x=y".into()],
        };
        let all = given(&flags(&["A=@f", "D=-"])).unwrap();
        assert_eq!(all["A"], Source::File("f".into()));
        assert_eq!(all["B"], Source::Variable("VAR".into()));
        assert_eq!(all["C"], Source::Command("pass show x=y".into()));
        assert_eq!(all["D"], Source::Stdin);
        for bad in [&["A=hunter2"][..], &["A"], &["=@f"], &["A=@"], &["A=-", "D=-"], &["B=@f"]] {
            let e = given(&flags(bad)).unwrap_err();
            assert!(!format!("{e:?}").contains("hunter2"), "{e:?}");
        }
    }
}
