//! What a build will need from outside the store.

use std::collections::HashSet;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::{NixError, Result, StorePath, aterm};

/// A file that a build wants by hash and that is not in the store yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address in the derivation, such as `mirror://debian/pool/main/h/hello/hello_2.10-3_amd64.deb`.
    pub url: String,
    /// The hash of its content, in hexadecimal.
    pub sha256: String,
    /// The name it has in the store.
    pub name: String,
    /// Where it will be in the store.
    pub out: StorePath,
}

/// Collects the fetches of `mirror://` addresses that `drv` needs and that are not yet in the store, in the order of their
/// names. What has been built already is not looked into.
///
/// `store_dir` is where this host reads `/nix/store`. `invalid` tells which paths, though there are files of theirs, the store
/// does not hold: those that a build or an addition left when it was killed.
pub fn missing_sources(
    store_dir: &Path,
    drv: &StorePath,
    invalid: &mut dyn FnMut(&[StorePath]) -> Result<Vec<StorePath>>,
) -> Result<Vec<Source>> {
    let (mut asked, mut broken) = (HashSet::new(), HashSet::new());
    loop {
        let (found, there) = walk(store_dir, drv, &broken)?;
        let new: Vec<StorePath> = there.into_iter().filter(|p| asked.insert(p.clone())).collect();
        let told = if new.is_empty() { Vec::new() } else { invalid(&new)? };
        if told.is_empty() {
            return Ok(found);
        }
        broken.extend(told);
    }
}

/// The missing sources, and the outputs at which the walk stopped because they are there.
fn walk(
    store_dir: &Path,
    drv: &StorePath,
    broken: &HashSet<StorePath>,
) -> Result<(Vec<Source>, Vec<StorePath>)> {
    let (mut found, mut there) = (Vec::new(), Vec::new());
    let mut seen = HashSet::from([drv.clone()]);
    let mut queue = vec![drv.clone()];
    while let Some(path) = queue.pop() {
        let file = store_dir.join(path.base_name());
        let text = codchi_fs::read(&file)?;
        let bad = |reason: String| NixError::Derivation { path: file.clone(), reason };
        let d = aterm::parse(&text).map_err(|e| bad(e.to_string()))?;
        let outputs: Option<Vec<StorePath>> = d.outputs.values().map(|o| o.parse().ok()).collect();
        if let Some(outputs) = outputs
            && outputs.iter().all(|o| !broken.contains(o) && exists(&store_dir.join(o.base_name())))
        {
            there.extend(outputs);
            continue;
        }
        let url = d.env.get("mirror").map(String::as_str).unwrap_or_default();
        if d.builder == "builtin:fetchurl" && url.starts_with("mirror://") {
            let hash = d.env.get("outputHash").map(String::as_str).unwrap_or_default();
            found.push(Source {
                url: url.to_owned(),
                sha256: sha256_hex(hash).ok_or_else(|| bad("its outputHash is no sha256".into()))?,
                name: d.env.get("name").cloned().ok_or_else(|| bad("it has no name".into()))?,
                out: d.outputs.get("out").ok_or_else(|| bad("it has no output `out`".into()))?.parse()?,
            });
            continue;
        }
        for input in d.inputs.keys() {
            let input: StorePath = input.parse()?;
            if seen.insert(input.clone()) {
                queue.push(input);
            }
        }
    }
    found.sort_by(|a, b| (&a.name, &a.url).cmp(&(&b.name, &b.url)));
    found.dedup_by(|a, b| a.out == b.out);
    Ok((found, there))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A sha256 in any of Nix's ways of writing one (hexadecimal, its own base 32, SRI), as hexadecimal.
pub fn sha256_hex(hash: &str) -> Option<String> {
    let text = hash.strip_prefix("sha256:").unwrap_or(hash);
    let bytes = if let Some(sri) = hash.strip_prefix("sha256-") {
        BASE64_STANDARD.decode(sri).ok()?
    } else if text.len() == 64 {
        return text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| text.to_ascii_lowercase());
    } else if text.len() == 52 {
        base32(text)?
    } else if text.len() == 44 {
        BASE64_STANDARD.decode(text).ok()?
    } else {
        return None;
    };
    (bytes.len() == 32).then(|| bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Nix's base 32: its own alphabet, least significant digit last.
fn base32(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut out = vec![0u8; text.len() * 5 / 8];
    for (n, c) in text.bytes().rev().enumerate() {
        let digit = ALPHABET.iter().position(|a| *a == c)? as u16;
        let (i, shift) = (n * 5 / 8, n * 5 % 8);
        let wide = digit << shift;
        *out.get_mut(i)? |= wide as u8;
        match out.get_mut(i + 1) {
            Some(next) => *next |= (wide >> 8) as u8,
            None if wide >> 8 != 0 => return None,
            None => {}
        }
    }
    Some(out)
}

/// Writes a hash in Nix's base 32.
pub fn to_base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let digits = (bytes.len() * 8).div_ceil(5);
    (0..digits)
        .rev()
        .map(|n| {
            let (i, shift) = (n * 5 / 8, n * 5 % 8);
            let low = u16::from(bytes[i]) >> shift;
            let high = u16::from(bytes.get(i + 1).copied().unwrap_or(0)) << (8 - shift);
            ALPHABET[usize::from((low | high) & 31)] as char
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_in_every_form() {
        // The three forms of the hash of the empty string, from the Nix manual's conversions.
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(hex).as_deref(), Some(hex));
        assert_eq!(sha256_hex("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").as_deref(), Some(hex));
        assert_eq!(sha256_hex("0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73").as_deref(), Some(hex));
        assert_eq!(
            sha256_hex("sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73").as_deref(),
            Some(hex)
        );
        for bad in ["", "sha256-", "zz", &"e".repeat(52), &"g".repeat(64), "sha512-47DEQpj8HBSa"] {
            assert_eq!(sha256_hex(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn base32_goes_both_ways(bytes in proptest::array::uniform32(0u8..)) {
            let text = to_base32(&bytes);
            proptest::prop_assert_eq!(text.len(), 52);
            proptest::prop_assert_eq!(base32(&text), Some(bytes.to_vec()));
        }

        #[test]
        fn any_hash_is_survived(text in ".{0,80}") {
            let _ = sha256_hex(&text);
        }
    }

    fn host(store_dir: &Path, path: &str) -> std::path::PathBuf {
        store_dir.join(path.rsplit('/').next().unwrap_or(path))
    }

    fn derive(out: &str, builder: &str, inputs: &[&str], env: &[(&str, &str)]) -> String {
        let inputs: Vec<_> = inputs.iter().map(|i| format!("(\"{i}\",[\"out\"])")).collect();
        let env: Vec<_> = env.iter().map(|(k, v)| format!("(\"{k}\",\"{v}\")")).collect();
        format!(
            "Derive([(\"out\",\"{out}\",\"\",\"\")],[{}],[],\"s\",\"{builder}\",[],[{}])",
            inputs.join(","),
            env.join(",")
        )
    }

    #[test]
    fn only_what_is_not_in_the_store_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str, name: &str| format!("/nix/store/{}-{name}", n.repeat(32));
        let put = |path: &str, text: &str| codchi_fs::write(host(dir.path(), path), text).unwrap();
        let sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let fetch = |out: &str, name: &str| {
            derive(
                out,
                "builtin:fetchurl",
                &[],
                &[("mirror", &format!("mirror://debian/{name}")), ("outputHash", sha), ("name", name)],
            )
        };
        put(
            &p("0", "top.drv"),
            &derive(
                &p("1", "top"),
                "sh",
                &[&p("2", "a.drv"), &p("4", "built.drv"), &p("6", "there.drv")],
                &[],
            ),
        );
        put(&p("2", "a.drv"), &fetch(&p("3", "a"), "a"));
        put(&p("4", "built.drv"), &derive(&p("5", "built"), "sh", &[&p("9", "not-even-present.drv")], &[]));
        put(&p("5", "built"), "");
        put(&p("6", "there.drv"), &fetch(&p("7", "there"), "there"));
        put(&p("7", "there"), "");
        let top = p("0", "top.drv").parse().unwrap();
        let missing = missing_sources(dir.path(), &top, &mut |_| Ok(Vec::new())).unwrap();
        assert_eq!(missing.len(), 1);
        assert_eq!((missing[0].name.as_str(), missing[0].sha256.as_str()), ("a", sha));
        assert_eq!(missing[0].out.as_str(), p("3", "a"));

        // Files that a killed build and a killed addition left do not count, nor does the walk stop at them.
        put(&p("9", "not-even-present.drv"), &fetch(&p("8", "below"), "below"));
        let left: [StorePath; 2] = [p("5", "built").parse().unwrap(), p("7", "there").parse().unwrap()];
        let mut invalid =
            |asked: &[StorePath]| Ok(asked.iter().filter(|p| left.contains(p)).cloned().collect());
        let missing = missing_sources(dir.path(), &top, &mut invalid).unwrap();
        let names: Vec<&str> = missing.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "below", "there"]);
    }
}
