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
    #[error("`{file}`, line {line}: {reason}")]
    Syntax {
        /// What it is called for people.
        file: String,
        /// 1-based line.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// It is written in a way that cannot be edited safely.
    #[error("`{file}`, line {line}: {reason}")]
    Refused {
        /// What it is called for people.
        file: String,
        /// 1-based line.
        line: usize,
        /// Why it is left alone.
        reason: String,
    },
}

/// What it is called where nobody says otherwise.
const FILE: &str = "flake.nix";

impl FlakeError {
    fn syntax(line: usize, reason: impl Into<String>) -> FlakeError {
        FlakeError::Syntax { file: FILE.into(), line, reason: reason.into() }
    }

    /// The same of a file that people know by another name.
    pub fn in_file(mut self, called: String) -> FlakeError {
        match &mut self {
            FlakeError::Syntax { file, .. } | FlakeError::Refused { file, .. } => *file = called,
        }
        self
    }
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

/// A place in `outputs` that names an input.
enum Use {
    /// `inputs.NAME`: the attribute.
    Select(ast::Attr),
    /// In another way.
    Other(rnix::SyntaxNode),
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
            return Err(FlakeError::syntax(line_of(text, error_offset(error, text)), describe(error)));
        }
        match parsed.tree().expr() {
            Some(ast::Expr::AttrSet(top)) if top.rec_token().is_none() => {
                Ok(Flake { text: text.into(), top })
            }
            Some(other) => Err(FlakeError::syntax(
                line_of(text, other.syntax().text_range().start().into()),
                "a flake is an attribute set `{ inputs...; outputs...; }`",
            )),
            None => Err(FlakeError::syntax(1, "the file is empty")),
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
        Err(FlakeError::Refused { file: FILE.into(), line: self.line(node), reason: reason.into() })
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

    /// The inputs that modules come from: all but Codchi and nixpkgs.
    pub fn sources(&self) -> Vec<(String, Option<String>)> {
        let mut all = self.inputs();
        all.retain(|(name, _)| name != "codchi" && name != "nixpkgs");
        all
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
                    None => self.fill(set.syntax(), &format!("{key}.url = {value};")),
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
            None => self.fill(list.syntax(), &wanted),
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

    /// Calls an input something else, wherever the flake names it.
    pub fn rename_input(&self, old: &InputName, new: &InputName) -> Result<Flake, FlakeError> {
        let bindings = self.bindings();
        let of = |name: &InputName| {
            bindings.iter().find(|b| b.path.len() > 1 && b.path[0] == "inputs" && b.path[1] == name.as_str())
        };
        if of(old).is_none() {
            return self.refuse(self.top.syntax(), format!("there is no input `{old}`"));
        }
        if let Some(there) = of(new) {
            return self.refuse(there.entry.syntax(), format!("there is an input `{new}` already"));
        }
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        let key = attr_name(new.as_str());
        for entry in self.top.attrpath_values() {
            let Some(path) = entry.attrpath() else { continue };
            let attrs: Vec<ast::Attr> = path.attrs().collect();
            if attrs.first().and_then(attr_text).as_deref() != Some("inputs") {
                continue;
            }
            match (attrs.get(1), entry.value()) {
                (Some(attr), _) if attr_text(attr).as_deref() == Some(old.as_str()) => {
                    edits.push((range_of(attr.syntax()), key.clone()));
                }
                (None, Some(ast::Expr::AttrSet(set))) => {
                    let firsts = set.attrpath_values().filter_map(|e| e.attrpath()?.attrs().next());
                    let named = firsts.filter(|a| attr_text(a).as_deref() == Some(old.as_str()));
                    edits.extend(named.map(|a| (range_of(a.syntax()), key.clone())));
                }
                _ => {}
            }
        }
        for b in
            bindings.iter().filter(|b| b.path[0] == "inputs" && b.path.last().is_some_and(|n| n == "follows"))
        {
            let Some(target) = plain_string(&b.value) else { continue };
            if target.split('/').next() == Some(old.as_str()) {
                edits.push((
                    range_of(b.value.syntax()),
                    string(&target.replacen(old.as_str(), new.as_str(), 1)),
                ));
            }
        }
        for used in self.uses(old)? {
            match used {
                Use::Select(attr) => edits.push((range_of(attr.syntax()), key.clone())),
                Use::Other(node) => {
                    return self
                        .refuse(&node, format!("`{old}` is named here in a way that is not understood"));
                }
            }
        }
        edits.sort_by_key(|(range, _)| range.start);
        let mut text = self.text.clone();
        for (range, with) in edits.into_iter().rev() {
            text.replace_range(range, &with);
        }
        Flake::parse(&text)
    }

    /// The first place that names an input beside its own lines and the list of modules.
    pub fn other_use(&self, name: &InputName) -> Result<Option<usize>, FlakeError> {
        let list = self.module_list()?;
        let within = range_of(list.syntax());
        let listed = |node: &rnix::SyntaxNode| {
            let r = range_of(node);
            within.start <= r.start && r.end <= within.end && {
                list.items().any(|i| {
                    range_of(i.syntax()).contains(&r.start) && describe_module(&i).of_input.is_some()
                })
            }
        };
        for used in self.uses(name)? {
            let node = match &used {
                Use::Select(attr) => attr.syntax(),
                Use::Other(node) => node,
            };
            if !listed(node) {
                return Ok(Some(self.line(node)));
            }
        }
        let follows = self.bindings().into_iter().find(|b| {
            b.path.len() > 2
                && b.path[0] == "inputs"
                && b.path[1] != name.as_str()
                && b.path.last().is_some_and(|n| n == "follows")
                && plain_string(&b.value).is_some_and(|t| t.split('/').next() == Some(name.as_str()))
        });
        Ok(follows.map(|b| self.line(b.entry.syntax())))
    }

    /// Where `outputs` names an input.
    fn uses(&self, name: &InputName) -> Result<Vec<Use>, FlakeError> {
        let outputs = self.outputs()?;
        let mut found = Vec::new();
        for node in outputs.syntax().descendants() {
            if let Some(select) = ast::Select::cast(node.clone()) {
                let of_inputs =
                    matches!(select.expr(), Some(ast::Expr::Ident(i)) if i.syntax().text() == "inputs");
                let first = select.attrpath().and_then(|p| p.attrs().next());
                match first {
                    Some(attr) if of_inputs && attr_text(&attr).as_deref() == Some(name.as_str()) => {
                        found.push(Use::Select(attr));
                    }
                    // A name that is computed may be this one.
                    Some(ast::Attr::Dynamic(d)) if of_inputs => found.push(Use::Other(d.syntax().clone())),
                    _ => {}
                }
            } else if let Some(entry) = ast::PatEntry::cast(node.clone()) {
                if entry.ident().is_some_and(|i| i.syntax().text() == name.as_str()) {
                    found.push(Use::Other(node));
                }
            } else if let Some(inherit) = ast::Inherit::cast(node.clone())
                && inherit.from().is_some_and(|f| f.syntax().text().to_string().contains("inputs"))
                && inherit.attrs().any(|a| attr_text(&a).as_deref() == Some(name.as_str()))
            {
                found.push(Use::Other(node));
            }
        }
        Ok(found)
    }

    /// Whose nixpkgs it uses: the input that it follows, `codchi` among them; none where it has one of its own.
    pub fn nixpkgs_from(&self) -> Option<String> {
        let b = self.bindings().into_iter().find(|b| b.path == ["inputs", "nixpkgs", "follows"])?;
        let target = plain_string(&b.value)?;
        target.strip_suffix("/nixpkgs").filter(|t| !t.contains('/')).map(str::to_owned)
    }

    /// Takes nixpkgs from an input, or, with none, from Codchi.
    pub fn set_nixpkgs(&self, from: Option<&InputName>) -> Result<Flake, FlakeError> {
        let target = string(&format!("{}/nixpkgs", from.map_or("codchi", InputName::as_str)));
        let bindings = self.bindings();
        let of: Vec<&Binding> =
            bindings.iter().filter(|b| b.path.len() > 1 && b.path[..2] == ["inputs", "nixpkgs"]).collect();
        match of.as_slice() {
            [one] if one.path[2..] == ["follows"] => match plain_string(&one.value) {
                Some(_) => self.spliced(range_of(one.value.syntax()), &target),
                None => self.refuse(one.entry.syntax(), "what `nixpkgs` follows is computed"),
            },
            [] => match self
                .top
                .attrpath_values()
                .find(|e| attrpath_names(e).is_some_and(|p| p[0] == "inputs"))
            {
                Some(first) if attrpath_names(&first).is_some_and(|p| p.len() == 1) => match first.value() {
                    Some(ast::Expr::AttrSet(set)) => match set.entries().next() {
                        Some(inner) => {
                            self.insert_after(inner.syntax(), &format!("nixpkgs.follows = {target};"))
                        }
                        None => self.fill(set.syntax(), &format!("nixpkgs.follows = {target};")),
                    },
                    _ => self.refuse(first.syntax(), "`inputs` is not written as a plain set"),
                },
                Some(first) => {
                    self.insert_after(first.syntax(), &format!("inputs.nixpkgs.follows = {target};"))
                }
                None => self.refuse(self.top.syntax(), "it has no `inputs`"),
            },
            [first, ..] => {
                self.refuse(first.entry.syntax(), "`nixpkgs` has an address or settings of its own here")
            }
        }
    }

    /// Puts the first entry into an empty set or list, after the comments that stand in it.
    fn fill(&self, brackets: &rnix::SyntaxNode, what: &str) -> Result<Flake, FlakeError> {
        let Range { start, end } = range_of(brackets);
        let inside = &self.text[start + 1..end - 1];
        if inside.trim().is_empty() {
            let (open, close) = (&self.text[start..start + 1], &self.text[end - 1..end]);
            return self.spliced(start..end, &format!("{open} {what} {close}"));
        }
        let at = start + 1 + inside.trim_end().len();
        let indent = self.indent_of(brackets);
        // A comment to the end of the line would hide a bracket that follows on it.
        let close = if self.text[at..end].contains('\n') { String::new() } else { format!("\n{indent}") };
        self.spliced(at..at, &format!("\n{indent}  {what}{close}"))
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

    #[test]
    fn a_new_name_is_used_everywhere() {
        let text = EDITED.replace(
            "  outputs = ",
            "  inputs.other.inputs.nixpkgs.follows = \"team/nixpkgs\";\n  inputs.nixpkgs.follows = \"team/nixpkgs\";\n  outputs = ",
        );
        let f = Flake::parse(&text).unwrap().rename_input(&input("team"), &input("crew")).unwrap();
        assert_eq!(
            f.text(),
            text.replace("    team = {", "    crew = {")
                .replace("team/nixpkgs", "crew/nixpkgs")
                .replace("inputs.team", "inputs.crew")
        );
        let back = f.rename_input(&input("crew"), &input("team")).unwrap();
        assert_eq!(back.text(), text);
        assert!(matches!(
            f.rename_input(&input("other"), &input("crew")),
            Err(FlakeError::Refused { line: 8, .. })
        ));
        let f = Flake::parse(
            "{\n  inputs.a.url = \"x\";\n  outputs =\n    { a, ... }@inputs: f { modules = [ a.m ]; };\n}\n",
        )
        .unwrap();
        assert!(matches!(f.rename_input(&input("a"), &input("b")), Err(FlakeError::Refused { line: 4, .. })));
        assert_eq!(f.other_use(&input("a")), Ok(Some(4)));
    }

    #[test]
    fn nixpkgs_comes_from_where_a_person_says() {
        let f = Flake::parse(&new().render()).unwrap();
        assert_eq!(f.nixpkgs_from().as_deref(), Some("codchi"));
        let g = f.set_nixpkgs(Some(&input("my-project"))).unwrap();
        assert_eq!(g.nixpkgs_from().as_deref(), Some("my-project"));
        assert_eq!(g.other_use(&input("my-project")), Ok(Some(3)));
        assert_eq!(g.set_nixpkgs(None).unwrap().text(), f.text());
        let g = Flake::parse(EDITED).unwrap().set_nixpkgs(None).unwrap();
        assert!(g.text().contains("# the tool\n    nixpkgs.follows = \"codchi/nixpkgs\";\n"), "{}", g.text());
        let own = Flake::parse("{\n  inputs.nixpkgs.url = \"x\";\n  outputs = i: f { modules = [ ]; };\n}")
            .unwrap();
        assert!(matches!(own.set_nixpkgs(None), Err(FlakeError::Refused { line: 2, .. })));
    }

    /// Flakes as people leave them; lines with `keep` are none of the edits' business.
    const BY_HAND: [&str; 4] = [
        EDITED,
        "# keep 1\n{\n  inputs.codchi.url = \"c\"; # keep 2\n\n  # keep 3\n  inputs.nixpkgs.follows = \"codchi/nixpkgs\";\n  inputs.a = { url = \"u\"; }; inputs.b.url = \"v\";\n\n  outputs = { codchi, ... } @ inputs:\n    codchi.lib.codeMachine\n    {\n      inherit inputs; /* keep 4 */\n      modules = [ inputs.a.nixosModules.default { x = 1; /* keep 5 */ } inputs.b.m.\"y z\" ];\n    }; # keep 6\n  # keep 7\n}\n",
        "{ inputs = { codchi.url = \"c\"; }; outputs = inputs: inputs.codchi.lib.codeMachine { modules = [ ]; }; /* keep */ }",
        "{\n  inputs = {\n    # keep 1\n  };\n  outputs =\n    inputs:\n    f {\n      modules = [\n        # keep 2\n        ./keep.nix # keep 3\n        (import ./keep2.nix { })\n      ];\n    };\n}\n",
    ];

    #[derive(Clone, Debug)]
    enum Edit {
        Add(u8, String),
        Point(u8, String),
        Module(u8, u8),
        Unlist(u8, Option<u8>),
        Remove(u8),
        Rename(u8, u8),
        Nixpkgs(Option<u8>),
    }

    fn edits() -> impl proptest::strategy::Strategy<Value = Vec<Edit>> {
        use proptest::prelude::*;
        let n = 0u8..4;
        let one = prop_oneof![
            3 => (n.clone(), "[ -~\n]{0,12}").prop_map(|(i, u)| Edit::Add(i, u)),
            1 => (n.clone(), "[ -~]{0,12}").prop_map(|(i, u)| Edit::Point(i, u)),
            3 => (n.clone(), 0u8..3).prop_map(|(i, m)| Edit::Module(i, m)),
            1 => (n.clone(), proptest::option::of(0u8..3)).prop_map(|(i, m)| Edit::Unlist(i, m)),
            1 => n.clone().prop_map(Edit::Remove),
            1 => (n.clone(), n.clone()).prop_map(|(i, j)| Edit::Rename(i, j)),
            1 => proptest::option::of(n).prop_map(Edit::Nixpkgs),
        ];
        proptest::collection::vec(one, 1..10)
    }

    /// What is said of inputs and modules, beside the text.
    type Said = (Vec<(String, Option<String>)>, Vec<(String, AttrPath)>, Option<String>);

    fn said(f: &Flake) -> Said {
        let modules = f.modules().unwrap().into_iter().filter_map(|m| m.of_input).collect();
        (f.inputs().into_iter().filter(|(n, _)| n != "nixpkgs").collect(), modules, f.nixpkgs_from())
    }

    /// The lines and comments that no edit may touch.
    fn kept(text: &str) -> Vec<String> {
        text.match_indices("keep")
            .map(|(i, _)| text[i..].chars().take(9).collect::<String>())
            .map(|s| s.split(['\n', '*', '.', '}']).next().unwrap_or_default().trim().to_owned())
            .collect()
    }

    fn apply(f: &Flake, said: &mut Said, edit: &Edit) -> Result<Flake, FlakeError> {
        let names = ["alpha", "team", "a", "b"].map(input);
        let attrs = ["nixosModules.default", "m.\"y z\"", "nixosModules.dev"].map(attr);
        let name = |i: &u8| &names[usize::from(*i)];
        let (inputs, modules, nixpkgs) = said;
        let new = match edit {
            Edit::Add(i, url) => {
                let new = f.add_input(name(i), url)?;
                inputs.push((name(i).to_string(), Some(url.clone())));
                // They are listed in the order of the file; the last of the sets comes last.
                let order: Vec<String> = new.inputs().into_iter().map(|(n, _)| n).collect();
                inputs.sort_by_key(|(n, _)| order.iter().position(|o| o == n));
                new
            }
            Edit::Point(i, url) => {
                let new = f.set_input(name(i), url)?;
                inputs
                    .iter_mut()
                    .filter(|(n, _)| n == name(i).as_str())
                    .for_each(|(_, u)| *u = Some(url.clone()));
                new
            }
            Edit::Module(i, m) => {
                let new = f.add_module(name(i), &attrs[usize::from(*m)])?;
                modules.push((name(i).to_string(), attrs[usize::from(*m)].clone()));
                new
            }
            Edit::Unlist(i, m) => {
                let at = m.map(|m| &attrs[usize::from(m)]);
                let new = f.remove_module(name(i), at)?;
                modules.retain(|(n, a)| n != name(i).as_str() || at.is_some_and(|at| at != a));
                new
            }
            Edit::Remove(i) => {
                let new = f.remove_input(name(i))?;
                inputs.retain(|(n, _)| n != name(i).as_str());
                new
            }
            Edit::Rename(i, j) => {
                let new = f.rename_input(name(i), name(j))?;
                inputs
                    .iter_mut()
                    .filter(|(n, _)| n == name(i).as_str())
                    .for_each(|(n, _)| *n = name(j).to_string());
                modules
                    .iter_mut()
                    .filter(|(n, _)| n == name(i).as_str())
                    .for_each(|(n, _)| *n = name(j).to_string());
                if nixpkgs.as_deref() == Some(name(i).as_str()) {
                    *nixpkgs = Some(name(j).to_string());
                }
                new
            }
            Edit::Nixpkgs(from) => {
                let new = f.set_nixpkgs(from.as_ref().map(name))?;
                *nixpkgs = Some(from.as_ref().map_or("codchi".into(), |i| name(i).to_string()));
                new
            }
        };
        Ok(new)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            // The whole of ten thousand takes minutes in a build without optimisation.
            cases: std::env::var("CODCHI_TEST_EDITS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000),
            ..proptest::prelude::ProptestConfig::default()
        })]
        #[test]
        fn any_sequence_of_edits_does_what_it_says_and_nothing_else(which in 0usize..4, edits in edits()) {
            let mut flake = Flake::parse(BY_HAND[which]).unwrap();
            let mut model = said(&flake);
            for edit in &edits {
                let mut next = model.clone();
                match apply(&flake, &mut next, edit) {
                    Ok(new) => (flake, model) = (new, next),
                    // Refused is refused: with a line that is there, and nothing changed.
                    Err(FlakeError::Refused { line, .. }) => {
                        proptest::prop_assert!(line >= 1 && line <= flake.text().lines().count());
                    }
                    Err(e) => proptest::prop_assert!(false, "{edit:?}: {e} in\n{}", flake.text()),
                }
                proptest::prop_assert_eq!(said(&flake), model.clone(), "{:?} gave\n{}", edit, flake.text());
                proptest::prop_assert_eq!(kept(flake.text()), kept(BY_HAND[which]), "{:?} gave\n{}", edit, flake.text());
            }
        }
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
