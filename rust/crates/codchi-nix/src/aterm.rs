//! Derivations, read from their `.drv` files.
//!
//! The form is described in the Nix manual, "Derivation, ATerm format".

use std::collections::BTreeMap;

/// One derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// Output name -> store path; empty for outputs whose path is known only after the build.
    pub outputs: BTreeMap<String, String>,
    /// Derivations it needs, each with the outputs it needs of them.
    pub inputs: BTreeMap<String, Vec<String>>,
    /// Store paths it needs as they are.
    pub sources: Vec<String>,
    /// The system it builds on.
    pub system: String,
    /// The program that builds it.
    pub builder: String,
    /// That program's arguments.
    pub args: Vec<String>,
    /// The environment. Not always text, so bytes that are no UTF-8 are replaced.
    pub env: BTreeMap<String, String>,
}

/// Why a derivation could not be read: the byte where it went wrong, and what was expected there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {at}")]
pub struct ATermError {
    /// Offset in the file.
    pub at: usize,
    /// What should have been there.
    pub expected: &'static str,
}

type Result<T> = std::result::Result<T, ATermError>;

/// Reads a derivation.
pub fn parse(text: &[u8]) -> Result<Derivation> {
    let mut p = Cursor { text, at: 0 };
    if p.text.starts_with(b"DrvWithVersion(") {
        p.eat(b"DrvWithVersion(", "`DrvWithVersion(`")?;
        p.string()?;
        p.eat(b",", "`,`")?;
    } else {
        p.eat(b"Derive(", "`Derive(`")?;
    }
    let mut outputs = BTreeMap::new();
    p.list(|p| {
        let [name, path, _, _] = p.tuple()?;
        outputs.insert(name, path);
        Ok(())
    })?;
    p.eat(b",", "`,`")?;
    let mut inputs = BTreeMap::new();
    p.list(|p| {
        p.eat(b"(", "`(`")?;
        let path = p.string()?;
        p.eat(b",", "`,`")?;
        let names = if p.text[p.at..].starts_with(b"(") { p.dynamic()? } else { p.strings()? };
        p.eat(b")", "`)`")?;
        inputs.insert(path, names);
        Ok(())
    })?;
    p.eat(b",", "`,`")?;
    let sources = p.strings()?;
    p.eat(b",", "`,`")?;
    let system = p.string()?;
    p.eat(b",", "`,`")?;
    let builder = p.string()?;
    p.eat(b",", "`,`")?;
    let args = p.strings()?;
    p.eat(b",", "`,`")?;
    let mut env = BTreeMap::new();
    p.list(|p| {
        let [key, value] = p.tuple()?;
        env.insert(key, value);
        Ok(())
    })?;
    p.eat(b")", "`)`")?;
    if p.at != p.text.len() {
        return Err(p.wanted("the end"));
    }
    Ok(Derivation { outputs, inputs, sources, system, builder, args, env })
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn wanted(&self, expected: &'static str) -> ATermError {
        ATermError { at: self.at, expected }
    }

    fn eat(&mut self, what: &[u8], name: &'static str) -> Result<()> {
        if self.text[self.at..].starts_with(what) {
            self.at += what.len();
            Ok(())
        } else {
            Err(self.wanted(name))
        }
    }

    fn string(&mut self) -> Result<String> {
        self.eat(b"\"", "`\"`")?;
        let mut out = Vec::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(n) = rest.iter().position(|b| matches!(b, b'"' | b'\\')) else {
                return Err(self.wanted("the end of a string"));
            };
            out.extend_from_slice(&rest[..n]);
            self.at += n + 1;
            if rest[n] == b'"' {
                return Ok(match String::from_utf8(out) {
                    Ok(s) => s,
                    Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
                });
            }
            let Some(c) = self.text.get(self.at) else { return Err(self.wanted("a character")) };
            out.push(match c {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                c => *c,
            });
            self.at += 1;
        }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.eat(b"[", "`[`")?;
        if self.eat(b"]", "").is_ok() {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.eat(b"]", "").is_ok() {
                return Ok(());
            }
            self.eat(b",", "`,` or `]`")?;
        }
    }

    fn strings(&mut self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        self.list(|p| {
            all.push(p.string()?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Inputs of a dynamic derivation: `([outputs],[(name, ...)])`; only the plain outputs matter here.
    fn dynamic(&mut self) -> Result<Vec<String>> {
        self.eat(b"(", "`(`")?;
        let names = self.strings()?;
        self.eat(b",", "`,`")?;
        let mut depth = 0usize;
        // The nested part is balanced outside of strings.
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.string()?;
                    continue;
                }
                Some(b'[' | b'(') => depth += 1,
                Some(b')') if depth == 0 => break,
                Some(b']' | b')') => depth = depth.saturating_sub(1),
                Some(_) => {}
                None => return Err(self.wanted("`)`")),
            }
            self.at += 1;
        }
        self.eat(b")", "`)`")?;
        Ok(names)
    }

    fn tuple<const N: usize>(&mut self) -> Result<[String; N]> {
        self.eat(b"(", "`(`")?;
        let mut all = std::array::from_fn(|_| String::new());
        for (i, slot) in all.iter_mut().enumerate() {
            if i > 0 {
                self.eat(b",", "`,`")?;
            }
            *slot = self.string()?;
        }
        self.eat(b")", "`)`")?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quote(s: &str) -> String {
        let mut out = String::from("\"");
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c => out.push(c),
            }
        }
        out + "\""
    }

    fn list(items: impl IntoIterator<Item = String>) -> String {
        format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
    }

    fn print(d: &Derivation) -> String {
        format!(
            "Derive({},{},{},{},{},{},{})",
            list(d.outputs.iter().map(|(n, p)| format!("({},{},\"\",\"\")", quote(n), quote(p)))),
            list(d.inputs.iter().map(|(p, o)| format!(
                "({},{})",
                quote(p),
                list(o.iter().map(|o| quote(o)))
            ))),
            list(d.sources.iter().map(|s| quote(s))),
            quote(&d.system),
            quote(&d.builder),
            list(d.args.iter().map(|s| quote(s))),
            list(d.env.iter().map(|(k, v)| format!("({},{})", quote(k), quote(v)))),
        )
    }

    fn text() -> impl Strategy<Value = String> {
        "(?s)[a-z\\\\\"\n\r\t,()\\[\\]é ]{0,12}"
    }

    fn derivation() -> impl Strategy<Value = Derivation> {
        let map = || proptest::collection::btree_map(text(), text(), 0..4);
        let vec = || proptest::collection::vec(text(), 0..4);
        (map(), proptest::collection::btree_map(text(), vec(), 0..3), vec(), text(), text(), vec(), map())
            .prop_map(|(outputs, inputs, sources, system, builder, args, env)| Derivation {
                outputs,
                inputs,
                sources,
                system,
                builder,
                args,
                env,
            })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(d in derivation()) {
            prop_assert_eq!(parse(print(&d).as_bytes()), Ok(d));
        }

        #[test]
        fn a_torn_file_is_an_error(d in derivation(), cut in 0usize..200) {
            let s = print(&d);
            prop_assume!(cut < s.len());
            prop_assert!(parse(&s.as_bytes()[..cut]).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"Derive([", &bytes[..]].concat());
        }
    }

    #[test]
    fn dynamic_inputs_are_read() {
        let t = br#"DrvWithVersion("xp-dyn-drv",[("out","","r:sha256","")],[("/nix/store/a.drv",(["out"],[("x",["y"])]))],[],"s","b",[],[])"#;
        assert_eq!(parse(t).unwrap().inputs["/nix/store/a.drv"], ["out"]);
    }
}
