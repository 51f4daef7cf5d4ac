//! Man pages: one for each command and each command below it, made of what `--help` says.

use std::io::{self, Write};

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{Cli, EXIT_STATUS};

/// A page: its name, such as `codchi-mount-add`, and its text.
pub struct Page {
    pub name: String,
    pub text: Vec<u8>,
}

/// All pages.
pub fn pages() -> io::Result<Vec<Page>> {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.build();
    let mut all = Vec::new();
    add(&command, "codchi", None, &mut all)?;
    Ok(all)
}

fn add(command: &clap::Command, name: &str, above: Option<&str>, all: &mut Vec<Page>) -> io::Result<()> {
    let below: Vec<&clap::Command> = command.get_subcommands().filter(|s| !s.is_hide_set()).collect();
    let names: Vec<String> = below.iter().map(|s| format!("{name}-{}", s.get_name())).collect();
    let mut text = Vec::new();
    let usage = command.clone().render_usage().to_string();
    let titled =
        command.clone().name(clap::builder::Str::from(name.to_string())).display_name(name.to_string());
    let page = Man::new(titled).source(format!("codchi {}", crate::app::VERSION)).manual("Codchi");
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    for line in usage.trim_start_matches("Usage:").lines().map(str::trim).filter(|l| !l.is_empty()) {
        // The words of the command itself, then what goes with it.
        let own = name.split('-').count().min(line.split(' ').count());
        let end = line.match_indices(' ').nth(own - 1).map_or(line.len(), |(i, _)| i);
        synopsis.control("br", []).text([bold(&line[..end]), roman(&line[end..])]);
    }
    synopsis.to_writer(&mut text)?;
    if command.get_long_about().is_some() {
        page.render_description_section(&mut text)?;
    }
    page.render_options_section(&mut text)?;
    if !below.is_empty() {
        page.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    if above.is_none() {
        rest.control("SH", ["EXIT STATUS"]).text([roman(EXIT_STATUS)]);
        for (title, entries) in [("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT)] {
            rest.control("SH", [title]);
            for (term, meaning) in entries {
                rest.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
            }
        }
    }
    if let Some(above) = above {
        rest.control("SH", ["SEE ALSO"]).text([roman(format!("{above}(1)"))]);
    }
    rest.to_writer(&mut text)?;
    all.push(Page { name: name.into(), text });
    for (sub, own) in below.into_iter().zip(names) {
        add(sub, &own, Some(name), all)?;
    }
    Ok(())
}

/// Files that a person may look at.
const FILES: &[(&str, &str)] = &[
    ("~/.config/codchi/config.toml", "Settings."),
    (
        "~/.config/codchi/machines/NAME/",
        "What a machine is made of (flake.nix, flake.lock) and where it is attached on this computer (host.toml). A person may \
         edit and commit them.",
    ),
    ("~/.local/state/codchi/", "Generations, logs, and records of commands that are at work."),
    ("~/.local/share/codchi/", "The store, the machines' files, encrypted secrets. Nobody else may enter."),
    ("~/.cache/codchi/", "What can be fetched again."),
];

/// Variables that decide something.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("CODCHI_BASE", "Where packages of new machines come from: `nixpkgs` or `debian`."),
    (
        "CODCHI_BASE_SUITE, CODCHI_BASE_MIRROR, CODCHI_BASE_SECURITY_MIRROR",
        "Release and servers of the `debian` base.",
    ),
    ("CODCHI_DRIVER", "What new machines run on."),
    (
        "XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_DATA_HOME, XDG_CACHE_HOME, XDG_RUNTIME_DIR",
        "Where Codchi's folders are.",
    ),
    ("NO_COLOR", "No colours."),
];

/// Writes them into a folder.
pub fn write(dir: &std::path::Path) -> crate::failure::Result<()> {
    codchi_fs::create_dir_all(dir)?;
    let pages =
        pages().map_err(|e| crate::failure::Failure::internal(format!("cannot make man pages: {e}")))?;
    for page in pages {
        let mut file = codchi_fs::create(dir.join(format!("{}.1", page.name)))?;
        file.write_all(&page.text)
            .map_err(|e| crate::failure::Failure::failed(format!("cannot write `{}`: {e}", page.name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: &Page) -> String {
        String::from_utf8(page.text.clone()).unwrap().replace('\\', "")
    }

    #[test]
    fn every_page_that_a_page_names_is_there() {
        let all = pages().unwrap();
        let mut named = 0;
        for page in &all {
            for word in text(page).split([' ', ',', '\n']).filter_map(|w| w.strip_suffix("(1)")) {
                named += 1;
                assert!(all.iter().any(|p| p.name == word), "`{}` names `{word}`", page.name);
            }
        }
        assert!(named > all.len(), "{named} of {}", all.len());
    }

    #[test]
    fn a_synopsis_has_the_command_and_what_goes_with_it() {
        let all = pages().unwrap();
        let find = |name: &str| text(all.iter().find(|p| p.name == name).unwrap());
        let init = find("codchi-init");
        assert!(
            init.contains("fBcodchi initfR [OPTIONS] <NAME> [SOURCE] [MODULE]... [-- <CMD>...]"),
            "{init}"
        );
        let add = find("codchi-mount-add");
        assert!(add.contains("fBcodchi mount addfR [OPTIONS] <NAME> <HOST:GUEST[:ro]>"), "{add}");
        assert!(!add.contains(".SH DESCRIPTION"), "it repeats its name: {add}");
        assert!(find("codchi").contains("6 busy"));
    }
}
