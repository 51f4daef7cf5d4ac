//! What a flake.nix says about itself, read without evaluating it.
//!
//! Nix wants `inputs` to be plain data (attribute sets and strings), so reading the syntax tree is exact there. Of
//! `outputs` only the common literal forms are understood; the rest is for [`Nix::module_names`].

use std::collections::BTreeMap;
use std::path::Path;

use codchi_core::progress::Progress;
use rnix::ast::{self, AstToken, HasEntry};
use rowan::ast::AstNode;
use serde_json::{Map, Value};

use crate::{Nix, NixError, Result, StorePath};

/// The most bytes that a flake.nix or a flake.lock may have.
pub(crate) const MOST: u64 = 16 << 20;

/// One input of a flake, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The reference: text as in `url = "..."`, or attributes (`type`, `owner`, ...), or nothing.
    pub reference: Option<Reference>,
    /// Another input this one is (`follows`), as a path from the flake that says so. Empty: nothing at all.
    pub follows: Option<Vec<String>>,
    /// Whether it is a flake (`flake = false` says no).
    pub is_flake: bool,
    /// What it says about inputs of that input.
    pub inputs: BTreeMap<String, Input>,
}

impl Default for Input {
    fn default() -> Self {
        Input { reference: None, follows: None, is_flake: true, inputs: BTreeMap::new() }
    }
}

/// How an input names its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `url = "..."`.
    Url(String),
    /// `type = "github"; owner = ...;`.
    Attrs(Map<String, Value>),
}

/// What could be read of a flake.nix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flake {
    /// `description`.
    pub description: Option<String>,
    /// All inputs, those that only the arguments of `outputs` name too.
    pub inputs: BTreeMap<String, Input>,
    /// The modules, where their names can be read.
    pub modules: Option<Vec<Module>>,
    /// Its `nixConfig`: settings of Nix and their values as nix.conf writes them. Codchi never accepts one unasked.
    pub nix_config: BTreeMap<String, String>,
}

/// A module of a flake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Module {
    /// `nixosModules` or `codchiModules`.
    pub set: String,
    /// Its attribute name.
    pub name: String,
}

/// The attributes that hold modules, those made for Codchi first.
pub const MODULE_SETS: [&str; 2] = ["codchiModules", "nixosModules"];

/// Reads the flake.nix in the folder `dir` of a source. `shown` is how errors name it.
pub fn read(source: &Path, dir: &str, shown: &str) -> Result<Flake> {
    let Some(text) = codchi_fs::read_beneath(source, Path::new(dir).join("flake.nix"), MOST)? else {
        return Err(NixError::NoFlake(shown.into()));
    };
    parse(&text).map_err(|(line, reason)| NixError::Parse {
        path: Path::new(shown).join("flake.nix"),
        line,
        reason,
    })
}

/// Reads the text of a flake.nix. An error is a line and a reason.
pub fn parse(text: &str) -> Result<Flake, (usize, String)> {
    let root = rnix::Root::parse(text);
    if let Some(e) = root.errors().first() {
        return Err((error_line(text, e), codchi_core::flake::describe(e)));
    }
    let Some(ast::Expr::AttrSet(top)) = root.tree().expr().map(peel) else {
        return Err((1, "a flake must be an attribute set".into()));
    };
    let fields = Fields::of(&top);
    let mut inputs = BTreeMap::new();
    for (name, fields) in fields.at("inputs").map(Fields::children).unwrap_or_default() {
        inputs.insert(name, input(&fields));
    }
    let outputs = fields.at("outputs").and_then(|f| f.value.clone()).map(peel);
    for name in outputs.as_ref().map(arguments).unwrap_or_default() {
        if name == "self" {
            continue;
        }
        let entry: &mut Input = inputs.entry(name.clone()).or_default();
        if entry.reference.is_none() && entry.follows.is_none() {
            let mut attrs = Map::new();
            attrs.insert("type".into(), "indirect".into());
            attrs.insert("id".into(), name.into());
            entry.reference = Some(Reference::Attrs(attrs));
        }
    }
    Ok(Flake {
        description: fields.at("description").and_then(Fields::text),
        modules: outputs.and_then(|o| modules(&o)),
        nix_config: fields.at("nixConfig").map(settings).unwrap_or_default(),
        inputs,
    })
}

/// Attributes of a set, with dotted paths taken apart, as far as they are static.
#[derive(Clone, Default)]
struct Fields {
    value: Option<ast::Expr>,
    children: Vec<(String, Fields)>,
    /// Some attribute could not be read: computed, or inherited.
    unknown: bool,
}

impl Fields {
    fn of(set: &ast::AttrSet) -> Fields {
        let mut fields = Fields::default();
        fields.merge(set);
        fields
    }

    fn merge(&mut self, set: &ast::AttrSet) {
        for entry in set.attrpath_values() {
            let names: Option<Vec<String>> =
                entry.attrpath().into_iter().flat_map(|p| p.attrs()).map(|a| attr_name(&a)).collect();
            let (Some(names), Some(value)) = (names.filter(|n| !n.is_empty()), entry.value()) else {
                self.unknown = true;
                continue;
            };
            let mut at = &mut *self;
            for name in names {
                at = at.child(name);
            }
            match peel(value) {
                ast::Expr::AttrSet(inner) => {
                    at.merge(&inner);
                    at.value = Some(ast::Expr::AttrSet(inner));
                }
                other => at.value = Some(other),
            }
        }
        for inherit in set.inherits() {
            for a in inherit.attrs() {
                match attr_name(&a) {
                    // Its name is known, its value is not.
                    Some(name) => self.child(name).unknown = true,
                    None => self.unknown = true,
                }
            }
        }
    }

    fn child(&mut self, name: String) -> &mut Fields {
        let i = match self.children.iter().position(|(n, _)| *n == name) {
            Some(i) => i,
            None => {
                self.children.push((name, Fields::default()));
                self.children.len() - 1
            }
        };
        &mut self.children[i].1
    }

    fn at(&self, name: &str) -> Option<&Fields> {
        self.children.iter().find(|(n, _)| n == name).map(|(_, f)| f)
    }

    /// As far as it is written out; nothing where that is nothing.
    fn literal(&self) -> Option<Value> {
        if self.children.is_empty() {
            return literal(self.value.as_ref()?);
        }
        let all = self.children.iter().filter_map(|(n, f)| Some((n.clone(), f.literal()?)));
        Some(Value::Object(all.collect()))
    }

    fn children(&self) -> Vec<(String, Fields)> {
        self.children.clone()
    }

    fn text(&self) -> Option<String> {
        match self.value.as_ref()? {
            ast::Expr::Str(s) => plain(s),
            ast::Expr::Literal(l) => match l.kind() {
                ast::LiteralKind::Uri(u) => Some(u.syntax().text().to_owned()),
                ast::LiteralKind::Integer(i) => Some(i.syntax().text().to_owned()),
                ast::LiteralKind::Float(_) => None,
            },
            ast::Expr::Ident(i) => Some(i.ident_token()?.text().to_owned()),
            // `url = ./folder` stands for `path:./folder`.
            ast::Expr::PathRel(p) => Some(p.syntax().text().to_string()),
            ast::Expr::PathAbs(p) => Some(p.syntax().text().to_string()),
            _ => None,
        }
    }
}

fn input(fields: &Fields) -> Input {
    let mut input = Input::default();
    let mut attrs = Map::new();
    for (name, f) in &fields.children {
        match name.as_str() {
            "url" => input.reference = f.text().map(Reference::Url),
            "follows" => {
                input.follows =
                    f.text().map(|t| t.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect());
            }
            "flake" => input.is_flake = f.text().as_deref() != Some("false"),
            "inputs" => input.inputs = f.children.iter().map(|(n, f)| (n.clone(), self::input(f))).collect(),
            _ => {
                if let Some(text) = f.text() {
                    let value = match (&f.value, text.as_str()) {
                        (Some(ast::Expr::Ident(_)), "true") => Value::Bool(true),
                        (Some(ast::Expr::Ident(_)), "false") => Value::Bool(false),
                        (Some(ast::Expr::Literal(_)), t) => {
                            t.parse::<u64>().map_or_else(|_| t.into(), Value::from)
                        }
                        (_, t) => t.into(),
                    };
                    attrs.insert(name.clone(), value);
                }
            }
        }
    }
    if input.reference.is_none() && attrs.contains_key("type") {
        input.reference = Some(Reference::Attrs(attrs));
    }
    input
}

/// The settings in a `nixConfig`. Nix wants them written out: strings, numbers, truth values and lists of strings.
fn settings(fields: &Fields) -> BTreeMap<String, String> {
    let text = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Array(all) => Some(all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")),
        Value::Object(_) | Value::Null => None,
        other => Some(other.to_string()),
    };
    // One whose value cannot be read is a setting all the same.
    let value = |f: &Fields| f.literal().as_ref().and_then(text).unwrap_or_default();
    fields.children.iter().map(|(name, f)| (name.clone(), value(f))).collect()
}

/// What a module says that is written out in `text`, a Nix expression: attribute sets, lists, strings, numbers and truth values. What is
/// computed is left out.
pub fn written(text: &str) -> Value {
    let root = rnix::Root::parse(text);
    if !root.errors().is_empty() {
        return Value::Null;
    }
    let mut expression = root.tree().expr().map(peel);
    // A module may be a function.
    while let Some(ast::Expr::Lambda(l)) = &expression {
        expression = l.body().map(peel);
    }
    match expression {
        Some(ast::Expr::AttrSet(set)) if set.rec_token().is_none() => {
            Fields::of(&set).literal().unwrap_or_default()
        }
        _ => Value::Null,
    }
}

fn literal(e: &ast::Expr) -> Option<Value> {
    match e {
        ast::Expr::Str(s) => plain(s).map(Value::String),
        ast::Expr::Literal(l) => match l.kind() {
            ast::LiteralKind::Uri(u) => Some(u.syntax().text().into()),
            ast::LiteralKind::Integer(i) => i.value().ok().map(Value::from),
            ast::LiteralKind::Float(f) => f.value().ok().map(Value::from),
        },
        ast::Expr::Ident(i) => match i.ident_token()?.text() {
            "true" => Some(true.into()),
            "false" => Some(false.into()),
            "null" => Some(Value::Null),
            _ => None,
        },
        ast::Expr::List(l) => {
            l.items().map(|i| literal(&peel(i))).collect::<Option<Vec<_>>>().map(Value::Array)
        }
        ast::Expr::AttrSet(set) => {
            Some(Fields::of(set).literal().unwrap_or_else(|| Value::Object(Map::new())))
        }
        _ => None,
    }
}

/// The names in `outputs = { self, a, b }: ...`.
fn arguments(outputs: &ast::Expr) -> Vec<String> {
    let ast::Expr::Lambda(l) = outputs else { return Vec::new() };
    let Some(ast::Param::Pattern(p)) = l.param() else { return Vec::new() };
    // An argument with a default need not be an input, but Nix makes it one all the same.
    p.pat_entries().filter_map(|e| Some(e.ident()?.ident_token()?.text().to_owned())).collect()
}

fn modules(outputs: &ast::Expr) -> Option<Vec<Module>> {
    let ast::Expr::Lambda(l) = outputs else { return None };
    let ast::Expr::AttrSet(set) = peel(l.body()?) else { return None };
    let fields = Fields::of(&set);
    if fields.unknown {
        return None;
    }
    let mut all = Vec::new();
    for set in MODULE_SETS {
        let Some(f) = fields.at(set) else { continue };
        if f.unknown || f.value.as_ref().is_some_and(|v| !matches!(v, ast::Expr::AttrSet(_))) {
            return None;
        }
        all.extend(f.children.iter().map(|(name, _)| Module { set: set.into(), name: name.clone() }));
    }
    Some(all)
}

/// Looks through parentheses and the bindings of a `let`.
fn peel(mut e: ast::Expr) -> ast::Expr {
    loop {
        let inner = match &e {
            ast::Expr::Paren(p) => p.expr(),
            ast::Expr::LetIn(l) => l.body(),
            _ => None,
        };
        match inner {
            Some(i) => e = i,
            None => return e,
        }
    }
}

fn attr_name(attr: &ast::Attr) -> Option<String> {
    match attr {
        ast::Attr::Ident(i) => Some(i.ident_token()?.text().to_owned()),
        ast::Attr::Str(s) => plain(s),
        ast::Attr::Dynamic(_) => None,
    }
}

/// The text of a string without interpolation.
fn plain(s: &ast::Str) -> Option<String> {
    s.normalized_parts()
        .into_iter()
        .map(|p| match p {
            ast::InterpolPart::Literal(t) => Some(t),
            ast::InterpolPart::Interpolation(_) => None,
        })
        .collect()
}

fn error_line(text: &str, error: &dyn std::fmt::Display) -> usize {
    // The error's own text carries the range as `START..END`.
    let shown = error.to_string();
    let at = shown
        .split_whitespace()
        .find_map(|w| w.split_once("..")?.0.parse::<usize>().ok())
        .unwrap_or(text.len())
        .min(text.len());
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
}

impl Nix {
    /// The modules of the flake at `path` (in the store): read when the text is plain enough, else evaluated.
    ///
    /// `overrides` are given to the evaluation as `--override-input`, so that it needs no foreign nixpkgs.
    pub fn module_names(
        &self,
        path: &StorePath,
        dir: &str,
        overrides: &[(String, String)],
        progress: &dyn Progress,
    ) -> Result<Vec<Module>> {
        if let Some(modules) = read(&self.launch().host_path(path), dir, dir)?.modules {
            return Ok(modules);
        }
        let replaced: Vec<&str> = overrides.iter().map(|(input, _)| input.as_str()).collect();
        self.examine(path, dir, &replaced, progress)?;
        let mut reference = format!("path:{path}");
        if !dir.is_empty() {
            reference = format!("{reference}?dir={dir}");
        }
        let mut all = Vec::new();
        for set in MODULE_SETS {
            let mut c = self.command(&["eval", "--json", "--no-write-lock-file"]);
            for (input, target) in overrides {
                c.args(["--override-input", input, target]);
            }
            c.args([&format!("{reference}#{set}"), "--apply", "builtins.attrNames"]);
            match self.run_logged(c, "listing the modules of the source", progress) {
                Ok(text) => {
                    let names: Vec<String> = serde_json::from_str(&text)
                        .map_err(|e| NixError::Answer { what: "nix eval".into(), reason: e.to_string() })?;
                    all.extend(names.into_iter().map(|name| Module { set: set.into(), name }));
                }
                // The set is not there at all.
                Err(NixError::Command { message, .. }) if message.contains("does not provide attribute") => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(f: &Flake, name: &str) -> Option<String> {
        match f.inputs.get(name)?.reference.as_ref()? {
            Reference::Url(u) => Some(u.clone()),
            Reference::Attrs(a) => {
                Some(format!("{}:{}", a["type"].as_str()?, a.get("id").or(a.get("repo"))?.as_str()?))
            }
        }
    }

    #[test]
    fn inputs_are_read_in_every_way_to_write_them() {
        let f = parse(
            r#"{
              description = "x";
              inputs.a.url = "github:o/a";
              inputs = {
                b = { url = "path:./b"; flake = false; };
                "c".inputs.nixpkgs.follows = "nixpkgs";
                c.url = https://example.org/c.tar.gz;
                d = { type = "github"; owner = "o"; repo = "d"; };
                e.follows = "c/nixpkgs";
              };
              nixConfig.x = 1;
              outputs = { self, a, nixpkgs, extra ? null, ... }@inputs: let x = 1; in { nixosModules.default = x; };
            }"#,
        )
        .unwrap();
        assert_eq!(f.description.as_deref(), Some("x"));
        assert_eq!(url(&f, "a").as_deref(), Some("github:o/a"));
        assert_eq!(url(&f, "c").as_deref(), Some("https://example.org/c.tar.gz"));
        assert_eq!(url(&f, "d").as_deref(), Some("github:d"));
        assert_eq!(url(&f, "nixpkgs").as_deref(), Some("indirect:nixpkgs"));
        assert_eq!(f.inputs["e"].follows, Some(vec!["c".into(), "nixpkgs".into()]));
        assert_eq!(f.inputs["c"].inputs["nixpkgs"].follows, Some(vec!["nixpkgs".into()]));
        assert!(!f.inputs["b"].is_flake && f.inputs["a"].is_flake);
        assert_eq!(f.nix_config["x"], "1");
        assert_eq!(f.modules, Some(vec![Module { set: "nixosModules".into(), name: "default".into() }]));
    }

    #[test]
    fn settings_of_nix_are_read_as_nix_conf_writes_them() {
        let f = parse(
            r#"{ nixConfig = { extra-substituters = [ "https://a" "https://b" ]; fallback = true; "log-lines" = 5;
                 post-build-hook = ./hook; }; nixConfig.x = ''y''; outputs = _: { }; }"#,
        )
        .unwrap();
        let got: Vec<_> = f.nix_config.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            got,
            [
                ("extra-substituters", "https://a https://b"),
                ("fallback", "true"),
                ("log-lines", "5"),
                ("post-build-hook", ""),
                ("x", "y")
            ]
        );
    }

    #[test]
    fn what_a_module_writes_out_is_read_and_what_it_computes_is_not() {
        let text = r#"{ lib, ... }: let x = 1; in {
          codchi.mounts."/data".source = "~/data";
          codchi.mounts."/data".readOnly = true;
          codchi.ports."80".host = x;
          codchi.requiredCapabilities = [ "kvm" ];
          codchi.gpu = lib.mkIf true { enable = true; };
          config = { codchi = { sound.enable = true; }; };
        }"#;
        let expected = serde_json::json!({
            "codchi": {"mounts": {"/data": {"source": "~/data", "readOnly": true}}, "requiredCapabilities": ["kvm"],
                       "ports": {"80": {}}},
            "config": {"codchi": {"sound": {"enable": true}}},
        });
        assert_eq!(written(text), expected);
        assert_eq!(written("rec { codchi = 1; }"), Value::Null);
        assert_eq!(written("import ./x"), Value::Null);
    }

    #[test]
    fn modules_are_named_or_left_to_evaluation() {
        let names = |outputs: &str| {
            let f = parse(&format!("{{ outputs = inputs: {outputs}; }}")).unwrap();
            f.modules.map(|m| m.into_iter().map(|m| m.name).collect::<Vec<_>>())
        };
        assert_eq!(
            names("{ nixosModules = { a = ./a.nix; \"b\" = {}; }; }"),
            Some(vec!["a".into(), "b".into()])
        );
        assert_eq!(
            names("{ nixosModules.a.imports = [ ]; codchiModules.c = 1; }"),
            Some(vec!["c".into(), "a".into()])
        );
        assert_eq!(names("{ packages = 1; }"), Some(vec![]));
        for computed in [
            "f { }",
            "{ nixosModules = f 1; }",
            "{ ${x}.y = 1; }",
            "{ inherit (x) nixosModules; }",
            "a // { }",
        ] {
            assert_eq!(names(computed), None, "{computed}");
        }
    }

    #[test]
    fn nonsense_is_an_error_with_its_line() {
        assert_eq!(parse("{\n  inputs = ;\n}").unwrap_err().0, 2);
        assert!(parse("1").is_err());
        assert!(parse("").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s).{0,120}") {
            let _ = parse(&text);
        }
    }
}
