//! What a machine gets of the host's own, once it is granted: certificate authorities, the way through a proxy, the netrc.
//!
//! It goes the way of secrets, through memory, to where `modules/host-secrets.nix` says.

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use codchi_core::consent;
use codchi_core::manifest::Needs;
use codchi_core::text;
use codchi_secrets::{Bundle, MAX_VALUE, Private, SecretsError};

use crate::app::App;
use crate::failure::{Failure, Result};

/// The bundle in PEM, under this name in the machine.
const CERTIFICATES: &str = "codchi-certificates";
/// The same as Java reads it.
const JAVA: &str = "codchi-cacerts";
/// The netrc.
const NETRC: &str = "codchi-netrc";
/// Variables that name a proxy. Programs know them in small letters.
const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// What of the host's own a machine with these needs gets.
pub fn of(app: &App, needs: &Needs, granted: &[String]) -> Result<Bundle> {
    let has = |name| consent::has_capability(needs, granted, name);
    let mut all = Bundle::new();
    let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
        all.insert(name, Private::copy(bytes).map_err(SecretsError::io("get memory"))?);
        Ok(())
    };
    if has("certificates") {
        let bundle = certificates(app)?;
        add(JAVA, &java(&bundle))?;
        add(CERTIFICATES, bundle.as_bytes())?;
        for name in PROXIES {
            let set = |n: &str| std::env::var(n).ok().filter(|v| !v.is_empty());
            if let Some(value) = set(name).or_else(|| set(&name.to_uppercase())) {
                add(name, value.as_bytes())?;
            }
        }
    }
    if has("netrc")
        && let Some(text) = codchi_fs::read_if_exists(app.dirs.home.join(".netrc"))?
    {
        add(NETRC, text.as_bytes())?;
    }
    Ok(all)
}

/// The certificate authorities that this host trusts, and those of the settings, in PEM.
fn certificates(app: &App) -> Result<String> {
    let given = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(|n| std::env::var_os(n).filter(|v| !v.is_empty()).map(PathBuf::from));
    let system = given.or_else(|| codchi_store::certificates().map(PathBuf::from));
    let named = "`SSL_CERT_FILE` and, under `[certificates]` in config.toml, `extra` name the files";
    let mut all = String::new();
    for file in system.iter().chain(&app.settings.certificates.extra) {
        let text = codchi_fs::read_to_string(file)?;
        if !text.contains(BEGIN) {
            return Err(
                Failure::failed(format!("`{}` holds no certificate in PEM", app.shown(file))).hint(named)
            );
        }
        all.push_str(&text);
        if !text.ends_with('\n') {
            all.push('\n');
        }
    }
    if all.len() > MAX_VALUE {
        return Err(Failure::failed(format!(
            "the certificate authorities are {} in all, and at most {} go into a machine",
            text::bytes(all.len() as u64),
            text::bytes(MAX_VALUE as u64)
        ))
        .hint(named));
    }
    Ok(all)
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A trust store as Java reads it: format JKS version 2, as `sun.security.provider.JavaKeyStore` documents it, with the password
/// that every Java tries.
fn java(pem: &str) -> Vec<u8> {
    use sha1::{Digest, Sha1};
    const PASSWORD: &str = "changeit";
    let certificates: Vec<Vec<u8>> = pem
        .split(BEGIN)
        .skip(1)
        .filter_map(|part| {
            let text: String = part.split(END).next()?.split_ascii_whitespace().collect();
            BASE64_STANDARD.decode(text).ok()
        })
        .filter(|der| !der.is_empty())
        .collect();
    let mut out = 0xfeed_feed_u32.to_be_bytes().to_vec();
    out.extend_from_slice(&2u32.to_be_bytes());
    out.extend_from_slice(&(certificates.len() as u32).to_be_bytes());
    for (i, der) in certificates.iter().enumerate() {
        // A trusted certificate: its alias, when it was added (never mind), its kind and its bytes.
        out.extend_from_slice(&2u32.to_be_bytes());
        utf(&mut out, &format!("host-{i}"));
        out.extend_from_slice(&0u64.to_be_bytes());
        utf(&mut out, "X.509");
        out.extend_from_slice(&(der.len() as u32).to_be_bytes());
        out.extend_from_slice(der);
    }
    let mut sum = Sha1::new();
    PASSWORD.encode_utf16().for_each(|unit| sum.update(unit.to_be_bytes()));
    sum.update(b"Mighty Aphrodite");
    sum.update(&out);
    out.extend_from_slice(&sum.finalize());
    out
}

fn utf(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_store_of_java_holds_every_certificate() {
        let pem = format!("# words\n{BEGIN}\nAAEC\n{END}\nmore\n{BEGIN}\nAw==\n{END}\n");
        let store = java(&pem);
        assert_eq!(&store[..12], [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 2]);
        assert!(store.windows(7).any(|w| w == [0, 0, 0, 3, 0, 1, 2]));
        // Its last 20 bytes are the sum over a password and the rest.
        assert_eq!(store.len(), 12 + 2 * (4 + 2 + 6 + 8 + 2 + 5 + 4) + 3 + 1 + 20);
    }
}
