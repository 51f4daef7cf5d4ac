//! Versioned files: parsed strictly, with errors that name file and line, and older versions brought up to date.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::report::Diagnose;

/// A file that does not say what it should. Nothing is ever written in answer to one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// It does not parse.
    #[error("`{}` line {line}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A later program wrote it.
    #[error("`{}` has version {found}, and this Codchi knows versions up to {known}", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version this program knows.
        known: u32,
    },
}

impl Diagnose for DocumentError {
    fn hints(&self) -> Vec<String> {
        match self {
            DocumentError::Syntax { .. } => vec!["nothing was changed; mend that line and try again".into()],
            DocumentError::Newer { .. } => vec!["use the newer Codchi that wrote it".into()],
        }
    }
}

/// Brings a document of one version to the next.
pub type Migration = fn(Value) -> Value;

/// Parses a versioned JSON document. `migrations[i]` takes version `i + 1` to `i + 2`; the newest known version is one more than
/// their number.
pub fn parse_json<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    migrations: &[Migration],
) -> Result<T, DocumentError> {
    let syntax = |e: serde_json::Error| DocumentError::Syntax {
        file: file.into(),
        line: e.line().max(1),
        message: strip_position(&e.to_string()),
    };
    let mut value: Value = serde_json::from_str(text).map_err(syntax)?;
    let known = migrations.len() as u32 + 1;
    let found = value.get("version").and_then(Value::as_u64).filter(|v| *v > 0).ok_or_else(|| {
        DocumentError::Syntax { file: file.into(), line: 1, message: "it has no `version`".into() }
    })?;
    if found > u64::from(known) {
        return Err(DocumentError::Newer { file: file.into(), found, known });
    }
    if found == u64::from(known) {
        // From the text and not from the value, so that an error knows its line.
        return serde_json::from_str(text).map_err(syntax);
    }
    for migrate in &migrations[found as usize - 1..] {
        value = migrate(value);
    }
    serde_json::from_value(value).map_err(syntax)
}

fn strip_position(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_string()
}

/// Parses a versioned TOML document of the one version there is so far.
#[cfg(feature = "host")]
pub fn parse_toml<T: DeserializeOwned>(file: &Path, text: &str, known: u32) -> Result<T, DocumentError> {
    let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let syntax = |span: Option<std::ops::Range<usize>>, message: &str| DocumentError::Syntax {
        file: file.into(),
        line: span.map_or(1, |s| line_at(s.start)),
        message: message.trim().replace('\n', ", "),
    };
    let document: toml_edit::Document<String> =
        text.parse().map_err(|e: toml_edit::TomlError| syntax(e.span(), e.message()))?;
    if let Some(item) = document.get("version") {
        match item.as_integer() {
            Some(v) if v > i64::from(known) => {
                return Err(DocumentError::Newer { file: file.into(), found: v as u64, known });
            }
            Some(v) if v >= 1 => {}
            _ => return Err(syntax(item.span(), "`version` must be a number from 1 on")),
        }
    }
    toml_edit::de::from_str(text).map_err(|e| syntax(e.span(), e.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Doc {
        version: u32,
        name: String,
    }

    fn renamed(mut v: Value) -> Value {
        v["name"] = v["title"].take();
        v["version"] = 2.into();
        v
    }

    #[test]
    fn an_older_document_is_brought_up_to_date() {
        let d: Doc = parse_json(Path::new("f"), r#"{"version":1,"title":"x"}"#, &[renamed]).unwrap();
        assert_eq!(d, Doc { version: 2, name: "x".into() });
    }

    #[test]
    fn errors_name_file_and_line() {
        let e = parse_json::<Doc>(Path::new("f.json"), "{\n\"version\":1,\n\"name\": 3}", &[]).unwrap_err();
        assert!(e.to_string().starts_with("`f.json` line 3: invalid type"), "{e}");
        let e = parse_json::<Doc>(Path::new("f.json"), "{\"version\":9}", &[renamed]).unwrap_err();
        assert_eq!(e.to_string(), "`f.json` has version 9, and this Codchi knows versions up to 2");
        let e = parse_json::<Doc>(Path::new("f.json"), "{", &[]).unwrap_err();
        assert!(matches!(e, DocumentError::Syntax { line: 1, .. }));
    }
}
