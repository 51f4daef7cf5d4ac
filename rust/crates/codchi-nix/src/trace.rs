//! Making Nix's error messages short: where in the person's module, then why.

/// Whose files are whose in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// A path, usually a store path, as it appears in messages.
    pub prefix: String,
    /// What to show in its place; `None` marks files that are not the person's (the base, Codchi's modules).
    pub shown: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Position {
    file: String,
    place: String,
    excerpt: Vec<String>,
}

/// Whether a message tells of a network that cannot be reached.
pub fn is_network(message: &str) -> bool {
    [
        "Could not resolve host",
        "Couldn't connect",
        "Failed to connect",
        "Connection refused",
        "timed out",
        "unable to download",
    ]
    .iter()
    .any(|m| message.contains(m))
}

/// Shortens what Nix wrote to stderr (with `--show-trace`) to: the place in the person's own files that is nearest to
/// the error, the message, and the option it was about.
pub fn shorten(stderr: &str, labels: &[Label]) -> String {
    let text = strip_escapes(stderr);
    let lines: Vec<&str> = text.lines().filter(|l| !noise(l)).collect();
    let Some(last) = lines.iter().rposition(|l| l.trim_start().starts_with("error:")) else {
        return relabel(lines.join("\n").trim(), labels);
    };
    let mut message = Vec::new();
    let first = lines[last].trim_start().trim_start_matches("error:").trim();
    if !first.is_empty() {
        message.push(first.to_owned());
    }
    let mut i = last + 1;
    while i < lines.len() && position(lines[i]).is_none() && !lines[i].trim_start().starts_with('…') {
        message.push(lines[i].strip_prefix("       ").unwrap_or(lines[i]).trim_end().to_owned());
        i += 1;
    }
    while message.last().is_some_and(|l| l.trim().is_empty()) {
        message.pop();
    }
    let mut places = positions(&lines);
    places.retain(|p| theirs(&p.file, labels));
    let option = lines.iter().rev().find_map(|l| {
        let l = l.trim_start().strip_prefix("… while evaluating the option ")?;
        Some(l.trim_end_matches(':').trim_matches(['`', '\'']).to_owned())
    });
    let mut out = Vec::new();
    // The last position is the innermost one.
    if let Some(p) = places.last() {
        out.push(format!("{}{}", p.file, p.place));
    } else if let Some(file) = definitions(&lines).into_iter().rev().find(|f| theirs(f, labels)) {
        out.push(file);
    }
    out.extend(message);
    if let Some(p) = places.last() {
        out.extend(p.excerpt.iter().cloned());
    }
    if let Some(option) = option
        && !out.iter().any(|l| l.contains(&option))
    {
        out.push(format!("while evaluating the option `{option}`"));
    }
    relabel(&out.join("\n"), labels)
}

/// Lines that tell nothing about the error.
fn noise(line: &str) -> bool {
    let l = line.trim_start();
    l.starts_with("(stack trace truncated")
        || l.starts_with("warning: error:")
        || l.starts_with("note: trace involved")
        || l.starts_with("evaluation warning:")
}

/// `at FILE:LINE:COLUMN:` -> file and `:line:column`.
fn position(line: &str) -> Option<(&str, &str)> {
    let l = line.trim_start().strip_prefix("at ")?.trim_end().strip_suffix(':')?;
    let column = l.rfind(':')?;
    let row = l[..column].rfind(':')?;
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (number(&l[column + 1..]) && number(&l[row + 1..column])).then(|| (&l[..row], &l[row..]))
}

fn positions(lines: &[&str]) -> Vec<Position> {
    let mut all = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        if let Some((file, place)) = position(line) {
            let excerpt = lines[i + 1..]
                .iter()
                .take_while(|l| {
                    l.trim_start().split_once('|').is_some_and(|(n, _)| n.bytes().all(|b| b.is_ascii_digit()))
                })
                .map(|l| l.strip_prefix("         ").unwrap_or(l).trim_end().to_owned())
                .collect();
            all.push(Position { file: file.into(), place: place.into(), excerpt });
        }
    }
    all
}

/// The files the option system names: "while evaluating definitions from `FILE':".
fn definitions(lines: &[&str]) -> Vec<String> {
    lines
        .iter()
        .filter_map(|l| {
            let (_, rest) = l.split_once("definitions from `").or_else(|| l.split_once("- In `"))?;
            Some(rest.split(['\'', '`']).next()?.to_owned())
        })
        .filter(|f| f.starts_with('/'))
        .collect()
}

fn theirs(file: &str, labels: &[Label]) -> bool {
    if let Some(l) = labels.iter().find(|l| under(file, &l.prefix)) {
        return l.shown.is_some();
    }
    // Without a label: what looks like nixpkgs, or Nix's own code, is not the person's.
    !(file.starts_with('<')
        || file.starts_with('«')
        || ["/nixos/", "/pkgs/", "/lib/"].iter().any(|d| in_store_tree(file, d)))
}

fn in_store_tree(file: &str, dir: &str) -> bool {
    crate::StorePath::containing(file).is_some_and(|p| file[p.as_str().len()..].starts_with(dir))
}

fn under(file: &str, prefix: &str) -> bool {
    file.strip_prefix(prefix).is_some_and(|r| r.is_empty() || r.starts_with('/'))
}

fn relabel(text: &str, labels: &[Label]) -> String {
    labels.iter().fold(text.to_owned(), |t, l| match &l.shown {
        Some(shown) => t.replace(&l.prefix, shown),
        None => t,
    })
}

/// Removes terminal escapes, which Nix also puts into the messages of its JSON log.
pub fn strip_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            out.push(c);
        } else if chars.next_if_eq(&'[').is_some() {
            while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
error:
       … while calling the 'head' builtin
         at /nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-codchi-base/lib/attrsets.nix:1534:13:
         1533|           if pred (head values) (tail values) then
         1534|             head values
             |             ^
         1535|           else

       … while evaluating the option `environment.systemPackages':

       … while evaluating definitions from `/nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source/machine.nix':

       error: undefined variable 'pkg'
       at /nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source/machine.nix:4:38:
            3| {
            4|   environment.systemPackages = [ pkg.hello ];
             |                                  ^
            5| }
";

    fn labels() -> Vec<Label> {
        vec![
            Label { prefix: "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-codchi-base".into(), shown: None },
            Label {
                prefix: "/nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source".into(),
                shown: Some("repo".into()),
            },
        ]
    }

    #[test]
    fn the_persons_file_and_line_come_first() {
        let short = shorten(TRACE, &labels());
        let mut lines = short.lines();
        assert_eq!(lines.next(), Some("repo/machine.nix:4:38"));
        assert_eq!(lines.next(), Some("undefined variable 'pkg'"));
        assert!(short.contains("environment.systemPackages = [ pkg.hello ]"));
        assert_eq!(short.lines().count(), 6, "{short}");
        assert!(!short.contains("attrsets.nix"));
    }

    #[test]
    fn a_throw_in_the_base_is_told_by_the_definition_it_came_from() {
        let text = "error:\n       … while evaluating definitions from `/nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source/m.nix':\n\n       error: the debian base has no package `foo'\n       second line\n       at /nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-codchi-base/pkgs/x.nix:1:1:\n            1| x\n";
        assert_eq!(shorten(text, &labels()), "repo/m.nix\nthe debian base has no package `foo'\nsecond line");
    }

    #[test]
    fn what_is_no_trace_stays() {
        assert_eq!(shorten("error: cannot connect\n", &[]), "cannot connect");
        assert_eq!(shorten("bash: nix: command not found", &[]), "bash: nix: command not found");
        assert_eq!(shorten("", &[]), "");
    }

    #[test]
    fn escapes_are_removed() {
        assert_eq!(strip_escapes("\u{1b}[31;1merror:\u{1b}[0m x"), "error: x");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,400}") {
            shorten(&text, &labels());
        }

        #[test]
        fn any_mix_of_trace_lines_is_survived(lines in proptest::collection::vec("(error:|at /a:1:2:|at :::|… while evaluating the option `x':| *[0-9]*\\| x|é)", 0..12)) {
            shorten(&lines.join("\n"), &labels());
        }
    }
}
