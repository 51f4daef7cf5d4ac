//! Engine settings as a driver's host.nix renders them: a document with a closed set of `@variables@`, which stand for what
//! only a host knows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A variable of a driver's engine settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// What stands between the `@`: lower-case letters.
    pub name: &'static str,
    /// Whether settings that do not use it are refused.
    pub needed: bool,
}

impl Variable {
    /// One that settings have to use.
    pub const fn needed(name: &'static str) -> Variable {
        Variable { name, needed: true }
    }

    /// One that they may leave out.
    pub const fn optional(name: &'static str) -> Variable {
        Variable { name, needed: false }
    }
}

/// Why variables cannot be put in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// It is not used, but has to be.
    #[error("the variable `@{0}@` is not used")]
    Unused(&'static str),
    /// There is no such variable, or it has no value.
    #[error("`@{0}@` is not a variable that has a value")]
    Unknown(String),
}

/// Puts values in for `@variables@` in every text of a document; keys are left as they are.
///
/// # Errors
/// A variable that does not exist, one that has no value, and one that has to be used but is not.
pub fn substitute(
    settings: &Value,
    variables: &[Variable],
    values: &BTreeMap<&str, String>,
) -> Result<Value, VariableError> {
    let mut substitution = Substitution { variables, values, used: BTreeSet::new() };
    let done = substitution.value(settings)?;
    match variables.iter().find(|v| v.needed && !substitution.used.contains(v.name)) {
        Some(unused) => Err(VariableError::Unused(unused.name)),
        None => Ok(done),
    }
}

struct Substitution<'a> {
    variables: &'a [Variable],
    values: &'a BTreeMap<&'a str, String>,
    used: BTreeSet<&'static str>,
}

impl Substitution<'_> {
    fn value(&mut self, v: &Value) -> Result<Value, VariableError> {
        Ok(match v {
            Value::String(s) => Value::String(self.text(s)?),
            Value::Array(a) => Value::Array(a.iter().map(|v| self.value(v)).collect::<Result<_, _>>()?),
            Value::Object(o) => Value::Object(
                o.iter().map(|(k, v)| Ok((k.clone(), self.value(v)?))).collect::<Result<_, _>>()?,
            ),
            other => other.clone(),
        })
    }

    fn text(&mut self, s: &str) -> Result<String, VariableError> {
        let mut out = String::new();
        let mut rest = s;
        while let Some(start) = rest.find('@') {
            let after = &rest[start + 1..];
            let end = after.find(|c: char| !c.is_ascii_lowercase());
            let Some(end) = end.filter(|e| *e > 0 && after[*e..].starts_with('@')) else {
                out.push_str(&rest[..=start]);
                rest = after;
                continue;
            };
            let name = &after[..end];
            let known = self.variables.iter().find(|v| v.name == name);
            let Some((known, value)) = known.and_then(|v| Some((v.name, self.values.get(v.name)?))) else {
                return Err(VariableError::Unknown(name.into()));
            };
            self.used.insert(known);
            out.push_str(&rest[..start]);
            out.push_str(value);
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const VARIABLES: [Variable; 3] =
        [Variable::needed("name"), Variable::needed("root"), Variable::optional("endpoint")];

    fn values() -> BTreeMap<&'static str, String> {
        VARIABLES.iter().map(|v| (v.name, format!("/{}", v.name))).collect()
    }

    #[test]
    fn variables_are_replaced_wherever_text_is() {
        let all = json!({"a": ["@endpoint@", "x@name@@root@y", "a@b", "@", "@@"], "n": 1});
        let v = substitute(&all, &VARIABLES, &values()).unwrap();
        assert_eq!(v, json!({"a": ["/endpoint", "x/name/rooty", "a@b", "@", "@@"], "n": 1}));
    }

    #[test]
    fn an_unknown_or_unused_variable_is_an_error() {
        let e = substitute(&json!(["@name@@root@", "@nope@"]), &VARIABLES, &values()).unwrap_err();
        assert_eq!(e, VariableError::Unknown("nope".into()));
        let e = substitute(&json!("@name@"), &VARIABLES, &values()).unwrap_err();
        assert_eq!(e, VariableError::Unused("root"));
        assert!(substitute(&json!("@name@@root@"), &VARIABLES, &values()).is_ok());
    }

    #[test]
    fn a_value_with_an_at_sign_is_not_replaced_again() {
        let mut v = values();
        v.insert("name", "@root@".into());
        assert_eq!(substitute(&json!(["@root@", "@name@"]), &VARIABLES, &v).unwrap()[1], "@root@");
    }
}
