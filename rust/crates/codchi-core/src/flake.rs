//! Machine flakes: written once, then edited as syntax trees, so that a person's comments, order and style stay.

use std::ops::Range;

use rnix::ast::{self, AstToken, HasEntry};
use rowan::ast::AstNode;

use crate::attr::{AttrPath, attr_name, string};
use crate::name::InputName;
use crate::report::Diagnose;

/// What a new machine flake says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFlake {
    /// Reference of the Codchi that makes it.
    pub codchi: String,
    /// Inputs in order: name and reference.
    pub inputs: Vec<(InputName, String)>,
    /// The input whose nixpkgs to use; none: Codchi's.
    pub nixpkgs_from: Option<InputName>,
    /// Nix system.
    pub system: String,
    /// The release at creation.
    pub state_version: String,
    /// Modules in order: of which input, at which attribute path.
    pub modules: Vec<(InputName, AttrPath)>,
}

impl NewFlake {
    /// The text of its `flake.nix`.
    pub fn render(&self) -> String {
        let mut out = String::from("{\n");
        out.push_str(&format!("  inputs.codchi.url = {};\n", string(&self.codchi)));
        let nixpkgs = match &self.nixpkgs_from {
            Some(input) => format!("{input}/nixpkgs"),
            None => "codchi/nixpkgs".into(),
        };
        out.push_str(&format!("  inputs.nixpkgs.follows = {};\n", string(&nixpkgs)));
        for (name, url) in &self.inputs {
            out.push_str(&format!("  inputs.{}.url = {};\n", attr_name(name.as_str()), string(url)));
        }
        out.push_str("\n  outputs =\n    { codchi, ... }@inputs:\n    codchi.lib.codeMachine {\n      inherit inputs;\n");
        out.push_str(&format!("      system = {};\n", string(&self.system)));
        out.push_str("      # The release at creation. It stays, whatever the packages are updated to.\n");
        out.push_str(&format!("      stateVersion = {};\n", string(&self.state_version)));
        if self.modules.is_empty() {
            out.push_str("      modules = [ ];\n");
        } else {
            out.push_str("      modules = [\n");
            for (input, attr) in &self.modules {
                out.push_str(&format!("        {}\n", module_expr(input, attr)));
            }
            out.push_str("      ];\n");
        }
        out.push_str("    };\n}\n");
        out
    }
}

fn module_expr(input: &InputName, attr: &AttrPath) -> String {
    format!("inputs.{}.{attr}", attr_name(input.as_str()))
}

/// Why a machine flake was not read or edited.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlakeError {
    /// It is not Nix.
    #[error("`flake.nix` line {line}: {message}")]
    Syntax {
        /// 1-based line.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// It is written in a way that cannot be edited safely.
    #[error("`flake.nix` line {line}: {reason}")]
    Refused {
        /// 1-based line.
        line: usize,
        /// Why it is left alone.
        reason: String,
    },
}

impl Diagnose for FlakeError {
    fn hints(&self) -> Vec<String> {
        match self {
            FlakeError::Syntax { .. } => vec!["nothing was changed; mend that line and try again".into()],
            FlakeError::Refused { .. } => vec!["nothing was changed; edit that line by hand".into()],
        }
    }
}

/// A module of a machine flake, where it is one of an input's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlakeModule {
    /// Its text.
    pub text: String,
    /// Input and attribute path; none where the expression is something else.
    pub of_input: Option<(String, AttrPath)>,
}

/// A machine flake as written.
#[derive(Clone, Debug)]
pub struct Flake {
    text: String,
    top: ast::AttrSet,
}

/// One `a.b.c = value;`, with the names of the sets round it.
struct Binding {
    path: Vec<String>,
    entry: ast::AttrpathValue,
    value: ast::Expr,
}

impl Flake {
    /// Parses the text of a `flake.nix`.
    pub fn parse(text: &str) -> Result<Flake, FlakeError> {
        let parsed = rnix::Root::parse(text);
        if let Some(error) = parsed.errors().first() {
            return Err(FlakeError::Syntax {
                line: line_of(text, error_offset(error, text)),
                message: describe(error),
            });
        }
        match parsed.tree().expr() {
            Some(ast::Expr::AttrSet(top)) if top.rec_token().is_none() => {
                Ok(Flake { text: text.into(), top })
            }
            Some(other) => Err(FlakeError::Syntax {
                line: line_of(text, other.syntax().text_range().start().into()),
                message: "a flake is an attribute set `{ inputs...; outputs...; }`".into(),
            }),
            None => Err(FlakeError::Syntax { line: 1, message: "the file is empty".into() }),
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn line(&self, node: &rnix::SyntaxNode) -> usize {
        line_of(&self.text, node.text_range().start().into())
    }

    fn refuse<T>(&self, node: &rnix::SyntaxNode, reason: impl Into<String>) -> Result<T, FlakeError> {
        Err(FlakeError::Refused { line: self.line(node), reason: reason.into() })
    }

    fn bindings(&self) -> Vec<Binding> {
        let mut out = Vec::new();
        flatten(&self.top, &mut Vec::new(), &mut out);
        out
    }

    /// Inputs in order: name, and reference where it is written as plain text.
    pub fn inputs(&self) -> Vec<(String, Option<String>)> {
        let mut out: Vec<(String, Option<String>)> = Vec::new();
        for b in self.bindings() {
            let [first, name, rest @ ..] = b.path.as_slice() else { continue };
            if first != "inputs" {
                continue;
            }
            let at = out.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
                out.push((name.clone(), None));
                out.len() - 1
            });
            if rest == ["url"] {
                out[at].1 = plain_string(&b.value);
            }
        }
        out
    }

    /// Modules in order.
    pub fn modules(&self) -> Result<Vec<FlakeModule>, FlakeError> {
        Ok(self.module_list()?.items().map(|item| describe_module(&item)).collect())
    }

    /// A plain string argument of `codeMachine`, such as `stateVersion`.
    pub fn argument(&self, name: &str) -> Option<String> {
        let outputs = self.outputs().ok()?;
        outputs
            .syntax()
            .descendants()
            .filter_map(ast::AttrpathValue::cast)
            .find(|e| attrpath_names(e).is_some_and(|p| p == [name]))
            .and_then(|e| e.value())
            .and_then(|v| plain_string(&v))
    }

    fn outputs(&self) -> Result<ast::Expr, FlakeError> {
        self.top
            .attrpath_values()
            .find(|e| attrpath_names(e).is_some_and(|p| p == ["outputs"]))
            .and_then(|e| e.value())
            .map_or_else(|| self.refuse(self.top.syntax(), "it has no `outputs`"), Ok)
    }

    fn module_list(&self) -> Result<ast::List, FlakeError> {
        let outputs = self.outputs()?;
        let entries: Vec<ast::AttrpathValue> = outputs
            .syntax()
            .descendants()
            .filter_map(ast::AttrpathValue::cast)
            .filter(|e| attrpath_names(e).is_some_and(|p| p == ["modules"]))
            .collect();
        match entries.as_slice() {
            [one] => match one.value() {
                Some(ast::Expr::List(list)) => Ok(list),
                _ => self.refuse(one.syntax(), "`modules` is not written as a plain list"),
            },
            [] => self.refuse(outputs.syntax(), "`outputs` has no `modules = [ ... ]`"),
            [_, second, ..] => self.refuse(second.syntax(), "there is more than one `modules`"),
        }
    }

    /// Adds an input after the last one, in the way that one is written.
    pub fn add_input(&self, name: &InputName, url: &str) -> Result<Flake, FlakeError> {
        let bindings = self.bindings();
        if let Some(there) =
            bindings.iter().find(|b| b.path.len() > 1 && b.path[0] == "inputs" && b.path[1] == name.as_str())
        {
            return self.refuse(there.entry.syntax(), format!("there is an input `{name}` already"));
        }
        let key = attr_name(name.as_str());
        let value = string(url);
        let last =
            self.top.attrpath_values().filter(|e| attrpath_names(e).is_some_and(|p| p[0] == "inputs")).last();
        match last {
            Some(entry) if attrpath_names(&entry).is_some_and(|p| p.len() == 1) => match entry.value() {
                Some(ast::Expr::AttrSet(set)) => match set.entries().last() {
                    Some(inner) => self.insert_after(inner.syntax(), &format!("{key}.url = {value};")),
                    None => {
                        let range = range_of(set.syntax());
                        self.spliced(range, &format!("{{ {key}.url = {value}; }}"))
                    }
                },
                _ => self.refuse(entry.syntax(), "`inputs` is not written as a plain set"),
            },
            Some(entry) => self.insert_after(entry.syntax(), &format!("inputs.{key}.url = {value};")),
            None => {
                let brace = self
                    .top
                    .syntax()
                    .children_with_tokens()
                    .find(|t| t.kind() == rnix::SyntaxKind::TOKEN_L_BRACE);
                let at = brace.map_or(0, |t| usize::from(t.text_range().end()));
                self.spliced(at..at, &format!("\n  inputs.{key}.url = {value};"))
            }
        }
    }

    /// Points an input somewhere else.
    pub fn set_input(&self, name: &InputName, url: &str) -> Result<Flake, FlakeError> {
        let found = self.bindings().into_iter().find(|b| b.path == ["inputs", name.as_str(), "url"]);
        match found {
            Some(b) if plain_string(&b.value).is_some() => {
                self.spliced(range_of(b.value.syntax()), &string(url))
            }
            Some(b) => self.refuse(b.entry.syntax(), format!("the address of `{name}` is computed")),
            None => self.refuse(self.top.syntax(), format!("there is no `inputs.{name}.url`")),
        }
    }

    /// Removes an input with everything said about it.
    pub fn remove_input(&self, name: &InputName) -> Result<Flake, FlakeError> {
        let is_it = |p: &[String], prefix: &[String]| {
            let full: Vec<&str> = prefix.iter().chain(p).map(String::as_str).collect();
            full.len() >= 2 && full[0] == "inputs" && full[1] == name.as_str()
        };
        let mut ranges = Vec::new();
        for entry in self.top.attrpath_values() {
            let Some(path) = attrpath_names(&entry) else { continue };
            if is_it(&path, &[]) {
                ranges.push(self.whole_lines(entry.syntax()));
            } else if path == ["inputs"]
                && let Some(ast::Expr::AttrSet(set)) = entry.value()
            {
                for inner in set.attrpath_values() {
                    if attrpath_names(&inner).is_some_and(|p| is_it(&p, &path)) {
                        ranges.push(self.whole_lines(inner.syntax()));
                    }
                }
            }
        }
        if ranges.is_empty() {
            return self.refuse(self.top.syntax(), format!("there is no input `{name}`"));
        }
        self.without(ranges)
    }

    /// Adds a module at the end.
    pub fn add_module(&self, input: &InputName, attr: &AttrPath) -> Result<Flake, FlakeError> {
        let list = self.module_list()?;
        let wanted = module_expr(input, attr);
        if list.items().any(|i| describe_module(&i).of_input == Some((input.to_string(), attr.clone()))) {
            return self.refuse(list.syntax(), format!("`{wanted}` is there already"));
        }
        match list.items().last() {
            Some(last) if self.starts_line(last.syntax()) => self.insert_after(last.syntax(), &wanted),
            Some(last) => {
                let end = range_of(last.syntax()).end;
                self.spliced(end..end, &format!(" {wanted}"))
            }
            None => {
                let range = range_of(list.syntax());
                let inside = &self.text[range.start + 1..range.end - 1];
                if inside.trim().is_empty() {
                    self.spliced(range, &format!("[ {wanted} ]"))
                } else {
                    // Only comments stand in the list.
                    let at = range.start + 1 + inside.trim_end().len();
                    let indent = format!("{}  ", self.indent_of(list.syntax()));
                    self.spliced(at..at, &format!("\n{indent}{wanted}"))
                }
            }
        }
    }

    /// Removes every module of an input, or the one at an attribute path.
    pub fn remove_module(&self, input: &InputName, attr: Option<&AttrPath>) -> Result<Flake, FlakeError> {
        let list = self.module_list()?;
        let mut ranges = Vec::new();
        for item in list.items() {
            if let Some((name, at)) = describe_module(&item).of_input
                && name == input.as_str()
                && attr.is_none_or(|a| *a == at)
            {
                ranges.push(self.whole_lines(item.syntax()));
            }
        }
        if ranges.is_empty() {
            let what = attr.map_or(input.to_string(), |a| format!("{input}.{a}"));
            return self.refuse(list.syntax(), format!("there is no module of `{what}` in the list"));
        }
        self.without(ranges)
    }

    fn starts_line(&self, node: &rnix::SyntaxNode) -> bool {
        let start = range_of(node).start;
        self.text[..start].rsplit('\n').next().is_some_and(|l| l.trim().is_empty())
            && self.text[..start].contains('\n')
    }

    fn indent_of(&self, node: &rnix::SyntaxNode) -> String {
        let start = range_of(node).start;
        let line = self.text[..start].rsplit('\n').next().unwrap_or_default();
        line.chars().take_while(|c| c.is_whitespace()).collect()
    }

    /// Inserts on a line of its own after a node (and what else stands on its line), indented like it.
    fn insert_after(&self, node: &rnix::SyntaxNode, what: &str) -> Result<Flake, FlakeError> {
        let end = range_of(node).end;
        let line_end = self.text[end..].find('\n').map_or(self.text.len(), |i| end + i);
        let rest = self.text[end..line_end].trim();
        if !rest.is_empty() && !rest.starts_with('#') {
            return self.spliced(end..end, &format!(" {what}"));
        }
        self.spliced(line_end..line_end, &format!("\n{}{what}", self.indent_of(node)))
    }

    /// The range of a node; with its whole line, and a comment at its end, where it has the line to itself.
    fn whole_lines(&self, node: &rnix::SyntaxNode) -> Range<usize> {
        let Range { start, end } = range_of(node);
        let line_start = self.text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = self.text[end..].find('\n').map_or(self.text.len(), |i| end + i);
        let before = &self.text[line_start..start];
        let after = self.text[end..line_end].trim();
        if before.trim().is_empty() && (after.is_empty() || after.starts_with('#')) {
            line_start..(line_end + 1).min(self.text.len())
        } else {
            let blanks = before.len() - before.trim_end().len();
            start - blanks..end
        }
    }

    fn without(&self, mut ranges: Vec<Range<usize>>) -> Result<Flake, FlakeError> {
        ranges.sort_by_key(|r| r.start);
        let mut text = self.text.clone();
        for r in ranges.into_iter().rev() {
            text.replace_range(r, "");
        }
        Flake::parse(&text)
    }

    fn spliced(&self, range: Range<usize>, with: &str) -> Result<Flake, FlakeError> {
        let mut text = self.text.clone();
        text.replace_range(range, with);
        Flake::parse(&text)
    }
}

fn range_of(node: &rnix::SyntaxNode) -> Range<usize> {
    let r = node.text_range();
    r.start().into()..r.end().into()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// A syntax error in words, with tokens as a person writes them.
pub fn describe(error: &rnix::ParseError) -> String {
    use rnix::ParseError as E;
    let found = |k: &rnix::SyntaxKind| match token(*k) {
        Some(t) => format!("`{t}`"),
        None => "this".into(),
    };
    match error {
        E::UnexpectedWanted(kind, _, wanted) => {
            match wanted.iter().copied().map(token).collect::<Option<Vec<_>>>() {
                Some(all) if all.len() <= 2 => {
                    format!("{} is not expected here, but `{}`", found(kind), all.join("` or `"))
                }
                _ => format!("{} is not expected here", found(kind)),
            }
        }
        E::UnexpectedEOFWanted(wanted) => match wanted.iter().copied().map(token).collect::<Option<Vec<_>>>()
        {
            Some(all) if !all.is_empty() => {
                format!("the file ends where `{}` is expected", all.join("` or `"))
            }
            _ => "the file ends too early".into(),
        },
        E::UnexpectedEOF => "the file ends too early".into(),
        E::UnexpectedExtra(_) => "there is more after the end of the expression".into(),
        E::DuplicatedArgs(_, name) => format!("the argument `{name}` is there twice"),
        E::Unexpected(_) => "this is not expected here".into(),
        other => other.to_string(),
    }
}

/// Punctuation as it is written.
fn token(kind: rnix::SyntaxKind) -> Option<&'static str> {
    use rnix::SyntaxKind as K;
    Some(match kind {
        K::TOKEN_SEMICOLON => ";",
        K::TOKEN_L_BRACE => "{",
        K::TOKEN_R_BRACE => "}",
        K::TOKEN_L_BRACK => "[",
        K::TOKEN_R_BRACK => "]",
        K::TOKEN_L_PAREN => "(",
        K::TOKEN_R_PAREN => ")",
        K::TOKEN_ASSIGN => "=",
        K::TOKEN_COLON => ":",
        K::TOKEN_COMMA => ",",
        K::TOKEN_STRING_START | K::TOKEN_STRING_END => "\"",
        K::TOKEN_IN => "in",
        K::TOKEN_THEN => "then",
        K::TOKEN_ELSE => "else",
        _ => return None,
    })
}

fn error_offset(error: &rnix::ParseError, text: &str) -> usize {
    use rnix::ParseError as E;
    let range = match error {
        E::Unexpected(r)
        | E::UnexpectedExtra(r)
        | E::UnexpectedWanted(_, r, _)
        | E::UnexpectedDoubleBind(r)
        | E::DuplicatedArgs(r, _) => r,
        _ => return text.trim_end().len(),
    };
    range.start().into()
}

fn attr_names(path: &ast::Attrpath) -> Option<Vec<String>> {
    path.attrs().map(|a| attr_text(&a)).collect()
}

fn attr_text(attr: &ast::Attr) -> Option<String> {
    match attr {
        ast::Attr::Ident(i) => Some(i.ident_token()?.text().to_string()),
        ast::Attr::Str(s) => plain_str(s),
        ast::Attr::Dynamic(_) => None,
    }
}

/// The names of a binding; none where one is computed.
fn attrpath_names(entry: &ast::AttrpathValue) -> Option<Vec<String>> {
    entry.attrpath().and_then(|p| attr_names(&p)).filter(|p| !p.is_empty())
}

fn plain_str(s: &ast::Str) -> Option<String> {
    match s.normalized_parts().as_slice() {
        [] => Some(String::new()),
        [ast::InterpolPart::Literal(text)] => Some(text.clone()),
        _ => None,
    }
}

fn plain_string(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Str(s) => plain_str(s),
        ast::Expr::Literal(l) => match l.kind() {
            ast::LiteralKind::Uri(u) => Some(u.syntax().text().to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn flatten(set: &ast::AttrSet, prefix: &mut Vec<String>, out: &mut Vec<Binding>) {
    for entry in set.attrpath_values() {
        let (Some(names), Some(value)) = (attrpath_names(&entry), entry.value()) else { continue };
        let depth = prefix.len();
        prefix.extend(names);
        match &value {
            ast::Expr::AttrSet(inner) if inner.entries().next().is_some() => flatten(inner, prefix, out),
            _ => out.push(Binding { path: prefix.clone(), entry, value }),
        }
        prefix.truncate(depth);
    }
}

fn describe_module(item: &ast::Expr) -> FlakeModule {
    let of_input = match item {
        ast::Expr::Select(select) if select.default_expr().is_none() => {
            let root = match select.expr() {
                Some(ast::Expr::Ident(i)) => i.ident_token().map(|t| t.text().to_string()),
                _ => None,
            };
            let names = select.attrpath().and_then(|p| attr_names(&p));
            match (root.as_deref(), names) {
                (Some("inputs"), Some(names)) if names.len() > 1 => {
                    AttrPath::new(names[1..].iter().cloned()).map(|a| (names[0].clone(), a))
                }
                (Some(root), Some(names)) => AttrPath::new(names).map(|a| (root.to_string(), a)),
                _ => None,
            }
        }
        _ => None,
    };
    FlakeModule { text: item.syntax().text().to_string(), of_input }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(s: &str) -> InputName {
        s.parse().unwrap()
    }
    fn attr(s: &str) -> AttrPath {
        s.parse().unwrap()
    }

    fn new() -> NewFlake {
        NewFlake {
            codchi: "github:codchi/codchi".into(),
            inputs: vec![(input("my-project"), "git+https://example.org/r?ref=main".into())],
            nixpkgs_from: None,
            system: "x86_64-linux".into(),
            state_version: "26.05".into(),
            modules: vec![(input("my-project"), attr("nixosModules.default"))],
        }
    }

    #[test]
    fn a_new_flake_reads_like_one_a_person_would_write() {
        insta::assert_snapshot!(new().render(), @r#"
        {
          inputs.codchi.url = "github:codchi/codchi";
          inputs.nixpkgs.follows = "codchi/nixpkgs";
          inputs.my-project.url = "git+https://example.org/r?ref=main";

          outputs =
            { codchi, ... }@inputs:
            codchi.lib.codeMachine {
              inherit inputs;
              system = "x86_64-linux";
              # The release at creation. It stays, whatever the packages are updated to.
              stateVersion = "26.05";
              modules = [
                inputs.my-project.nixosModules.default
              ];
            };
        }
        "#);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let f = Flake::parse(&new().render()).unwrap();
        assert_eq!(
            f.inputs(),
            [
                ("codchi".into(), Some("github:codchi/codchi".into())),
                ("nixpkgs".into(), None),
                ("my-project".into(), Some("git+https://example.org/r?ref=main".into()))
            ]
        );
        assert_eq!(
            f.modules().unwrap()[0].of_input,
            Some(("my-project".into(), attr("nixosModules.default")))
        );
        assert_eq!(f.argument("stateVersion").as_deref(), Some("26.05"));
    }

    const EDITED: &str = r#"# my machine
{
  description = "mine"; # stays
  inputs = {
    codchi.url = "github:codchi/codchi"; # the tool
    # the team's
    team = {
      url = "github:team/env";
      inputs.nixpkgs.follows = "codchi/nixpkgs";
    };
  };

  outputs = { codchi, ... }@inputs:
    codchi.lib.codeMachine {
      inherit inputs;
      modules = [
        inputs.team.nixosModules.default # first
        { networking.hostName = "x"; }
        ./local.nix
      ];
    };
}
"#;

    #[test]
    fn edits_keep_comments_order_and_style() {
        let f = Flake::parse(EDITED).unwrap();
        let f = f.add_input(&input("more"), "github:a/b").unwrap();
        let f = f.set_input(&input("team"), "github:team/env/v2").unwrap();
        let f = f.add_module(&input("more"), &attr("nixosModules.\"x.y\"")).unwrap();
        let f = f.remove_module(&input("team"), None).unwrap();
        insta::assert_snapshot!(f.text(), @r##"
        # my machine
        {
          description = "mine"; # stays
          inputs = {
            codchi.url = "github:codchi/codchi"; # the tool
            # the team's
            team = {
              url = "github:team/env/v2";
              inputs.nixpkgs.follows = "codchi/nixpkgs";
            };
            more.url = "github:a/b";
          };

          outputs = { codchi, ... }@inputs:
            codchi.lib.codeMachine {
              inherit inputs;
              modules = [
                { networking.hostName = "x"; }
                ./local.nix
                inputs.more.nixosModules."x.y"
              ];
            };
        }
        "##);
    }

    #[test]
    fn nonsense_is_an_error_with_its_line() {
        let line = |t: &str| match Flake::parse(t) {
            Err(FlakeError::Syntax { line, .. }) => line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line("{\n  inputs.a = ;\n}"), 2);
        assert_eq!(line("{\n  a = 1;\n"), 2);
        assert_eq!(line("x: x"), 1);
        assert_eq!(line(""), 1);
    }

    #[test]
    fn an_edit_that_is_not_safe_is_refused_with_its_line() {
        let f = Flake::parse("{\n  inputs.a.url = x;\n  outputs = i:\n    f { modules = map g i; };\n}\n")
            .unwrap();
        assert!(matches!(f.set_input(&input("a"), "y"), Err(FlakeError::Refused { line: 2, .. })));
        assert!(matches!(f.add_module(&input("a"), &attr("b")), Err(FlakeError::Refused { line: 4, .. })));
        assert!(matches!(f.add_input(&input("a"), "y"), Err(FlakeError::Refused { line: 2, .. })));
    }

    proptest::proptest! {
        #[test]
        fn adding_and_removing_leaves_the_text_as_it_was(name in "[a-z][a-z0-9]{1,8}", url in "[ -~]{1,20}") {
            proptest::prop_assume!(!["codchi", "nixpkgs", "team", "self"].contains(&name.as_str()));
            let name = input(&name);
            for text in [EDITED.to_string(), new().render()] {
                let before = Flake::parse(&text).unwrap();
                let with = before.add_input(&name, &url).unwrap().add_module(&name, &attr("m.n")).unwrap();
                let stored = with.inputs().into_iter().find(|(n, _)| n == name.as_str()).unwrap().1;
                assert_eq!(stored.as_deref(), Some(url.as_str()));
                let without = with.remove_module(&name, None).unwrap().remove_input(&name).unwrap();
                assert_eq!(without.text(), text);
            }
        }

        #[test]
        fn no_text_makes_the_parser_fall_over(s in "[{}=;a-z\"\\[\\]. \n#:,@$]{0,60}") {
            let _ = Flake::parse(&s).map(|f| (f.inputs(), f.modules().is_ok()));
        }
    }
}
