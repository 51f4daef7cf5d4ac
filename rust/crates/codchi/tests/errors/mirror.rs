//! Errors of a mirror and of what it gives, from a server of the test's own that signs with keys made for the occasion.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedSecretKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{Duration as Seconds, KeyDetails, Password, Tag, Timestamp};
use sha2::{Digest, Sha256};

use super::built::built;
use super::common::{Home, refused_with};
use super::home;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A proxy where nobody listens: nothing but the test's own server can be reached.
const NOWHERE: (&str, &str) = ("https_proxy", "http://127.0.0.1:1");

/// Answers by path; what is not there is answered with `else_`.
fn serve(files: HashMap<String, Vec<u8>>, else_: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            let files = files.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(peer.try_clone().unwrap()).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                lines.by_ref().find(|l| l.is_empty());
                let answer = match files.get(first.split(' ').nth(1).unwrap_or_default()) {
                    None => else_.as_bytes().to_vec(),
                    Some(body) => {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                            body.len()
                        );
                        [head.as_bytes(), body].concat()
                    }
                };
                let _ = peer.write_all(&answer);
            });
        }
    });
    address
}

const MISSING: &str = "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Says which address is meant and runs `codchi` with it, in a home without a store.
fn refused(home: &Home, address: &str, settings: &str, args: &[&str], status: i32) -> String {
    home.write(
        ".config/codchi/config.toml",
        format!("version = 1\n[base]\nmirror = \"{address}\"\nsecurity-mirror = \"{address}\"\n{settings}\n"),
    );
    let done = home.run_with(args, &[NOWHERE]);
    assert_eq!(done.status, status, "{settings}: {}", done.err);
    // What it does meanwhile is told on lines of their own.
    let error = done.err.find("error: ").unwrap();
    done.err[error..].replace(address, "MIRROR")
}

const INIT: [&str; 4] = ["init", "x", "--base", "debian"];

#[test]
fn errors_of_a_mirror() {
    let home = home();
    let settings = home.path().join(".config/codchi/config.toml");
    let mut said = Vec::new();
    for setting in ["suite = \"frob\"", "mirror = \"ftp://a.example.org\""] {
        codchi_fs::write(&settings, format!("version = 1\n[base]\n{setting}\n")).unwrap();
        let done = home.run_with(&INIT, &[NOWHERE]);
        assert_eq!(done.status, 2, "{setting}: {}", done.err);
        said.push(done.err);
    }
    for (answer, status) in [
        (MISSING, 1),
        ("HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 3),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 3),
        ("HTTP/1.1 200 Yes\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", 1),
    ] {
        said.push(refused(&home, &serve(HashMap::new(), answer), "", &INIT, status));
    }
    insta::assert_snapshot!(said.join("\n"));
    assert!(!home.path().join(".local/share/codchi/store").exists());
}

fn stamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap()
}

fn config(key: &impl pgp::types::SigningKey, typ: SignatureType, created: SystemTime) -> SignatureConfig {
    let mut config = SignatureConfig::v4(typ, key.algorithm(), HashAlgorithm::Sha512);
    config.hashed_subpackets = vec![
        Subpacket::regular(SubpacketData::SignatureCreationTime(stamp(created))).unwrap(),
        Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
    ];
    config
}

/// A key that is made at a time and may have an end, and its public half.
fn key(created: SystemTime, lasts: Option<Duration>) -> (SignedSecretKey, Vec<u8>) {
    let secret = SecretKeyParamsBuilder::default()
        .key_type(KeyType::Ed25519Legacy)
        .can_certify(true)
        .can_sign(true)
        .created_at(stamp(created))
        .primary_user_id("Archive <archive@example.org>".into())
        .build()
        .unwrap()
        .generate(rand::thread_rng())
        .unwrap();
    let mut public = secret.to_public_key();
    if let Some(lasts) = lasts {
        let mut config = config(&secret.primary_key, SignatureType::CertPositive, created);
        let end = SubpacketData::KeyExpirationTime(Seconds::from_secs(lasts.as_secs() as u32));
        config.hashed_subpackets.push(Subpacket::regular(end).unwrap());
        let user = &public.details.users[0].id;
        let none = Password::empty();
        let signed =
            config.sign_certification(&secret.primary_key, &public.primary_key, &none, Tag::UserId, user);
        let mut users = public.details.users.clone();
        users[0].signatures = vec![signed.unwrap()];
        public.details = SignedKeyDetails { users, ..public.details };
    }
    let public = public.to_bytes().unwrap();
    (secret, public)
}

fn sign(text: &str, key: &SignedSecretKey, created: SystemTime) -> String {
    let config = config(&key.primary_key, SignatureType::Text, created);
    let message = CleartextSignedMessage::new(text, config, &key.primary_key, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut w = liblzma::write::XzEncoder::new(Vec::new(), 1);
    w.write_all(data).unwrap();
    w.finish().unwrap()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn release(suite: &str, packages: &[u8], until: &str) -> String {
    format!(
        "Origin: Debian\nCodename: {suite}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nValid-Until: {until}\n\
         SHA256:\n {} {} main/binary-{}/Packages.xz\n",
        hex(packages),
        packages.len(),
        architecture()
    )
}

const LATER: &str = "Thu, 01 Jan 2099 00:00:00 UTC";

/// A mirror of `trixie`, where each archive says the same.
struct Mirror {
    secret: SignedSecretKey,
    packages: Vec<u8>,
    /// What the signed index is of, where that differs.
    promised: Option<Vec<u8>>,
    files: HashMap<String, Vec<u8>>,
    until: &'static str,
    made: SystemTime,
    alter: fn(String) -> String,
}

impl Mirror {
    fn new(secret: SignedSecretKey, packages: &str) -> Mirror {
        Mirror {
            secret,
            packages: xz(packages.as_bytes()),
            promised: None,
            files: HashMap::new(),
            until: LATER,
            made: SystemTime::now() - DAY,
            alter: |text| text,
        }
    }

    fn serve(mut self) -> String {
        for suite in ["trixie", "trixie-updates", "trixie-security"] {
            let text = release(suite, self.promised.as_ref().unwrap_or(&self.packages), self.until);
            let signed = (self.alter)(sign(&text, &self.secret, self.made));
            let dists = format!("/dists/{suite}");
            self.files.insert(format!("{dists}/InRelease"), signed.into_bytes());
            let index = format!("{dists}/main/binary-{}/Packages.xz", architecture());
            self.files.insert(index, self.packages.clone());
        }
        serve(self.files, MISSING)
    }
}

#[test]
fn errors_of_signatures() {
    let now = SystemTime::now();
    let home = home();
    let (good, ring) = key(now - 900 * DAY, None);
    let (short, short_ring) = key(now - 900 * DAY, Some(30 * DAY));
    home.write("good.pgp", ring);
    home.write("short.pgp", short_ring);
    home.write("weak.key", WEAK_KEY);
    let of = |file: &str| format!("keyrings = [\"{}\"]", home.path().join(file).display());
    let mut said = Vec::new();
    let mut tell = |mirror: Mirror, keyring: &str, id: &SignedSecretKey| {
        let text = refused(&home, &mirror.serve(), &of(keyring), &INIT, 1);
        let name = format!("{:X}", id.primary_key.fingerprint());
        said.push(text.replace(&name, "KEY"));
    };
    tell(Mirror::new(good.clone(), ""), "short.pgp", &good);
    tell(
        Mirror { alter: |t| t.replace("Origin: Debian", "Origin: Debiam"), ..Mirror::new(good.clone(), "") },
        "good.pgp",
        &good,
    );
    tell(Mirror::new(short.clone(), ""), "short.pgp", &short);
    tell(Mirror { made: now + 9 * DAY, ..Mirror::new(good.clone(), "") }, "good.pgp", &good);
    tell(Mirror { alter: |_| WEAK.into(), ..Mirror::new(good.clone(), "") }, "weak.key", &good);
    home.write("text", "no keys");
    tell(Mirror::new(good.clone(), ""), "text", &good);
    let armored = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnone\n-----END PGP PUBLIC KEY BLOCK-----\n";
    home.write("armored", armored);
    tell(Mirror::new(good.clone(), ""), "armored", &good);
    insta::with_settings!({ filters => vec![(r"\([0-9A-F]{16,40}\)", "(KEY)")] }, {
        insta::assert_snapshot!(said.join("\n"));
    });
}

/// Signed with SHA-1 by a key of RSA: the keys that are made here refuse to.
const WEAK: &str = include_str!("weak.asc");
const WEAK_KEY: &str = include_str!("weak.key.asc");

/// The entry of a package in an index, whose file is what follows.
fn entry(name: &str, version: &str, deb: &[u8]) -> String {
    format!(
        "Package: {name}\nVersion: {version}\nFilename: pool/{name}.deb\nSize: {}\nSHA256: {}\n\n",
        deb.len(),
        hex(deb)
    )
}

/// A package with these files.
fn deb(files: &[(&str, &str)]) -> Vec<u8> {
    let tar = |files: &[(&str, &str)]| {
        let mut out = Vec::new();
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o755);
            header.set_size(text.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(text.as_bytes());
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        xz(&out)
    };
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", tar(&[("./control", "Package: x\nVersion: 1\n")])),
        ("data.tar.xz", tar(files)),
    ] {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).bytes(),
        );
        out.extend(&content);
        if content.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

#[test]
fn errors_of_what_a_mirror_has() {
    let now = SystemTime::now();
    let (secret, ring) = key(now - 900 * DAY, None);
    let mirror = |packages: &str| Mirror::new(secret.clone(), packages);
    // With each other package as it should be.
    let with = |version: &str, nix: &[u8]| {
        let [patchelf, bash] = ["patchelf", "bash-static"].map(|n| deb(&[(&format!("./usr/share/{n}"), "")]));
        let packages = [("nix-bin", version, nix), ("patchelf", "1", &patchelf), ("bash-static", "1", &bash)];
        let text: String = packages.iter().map(|(n, v, d)| entry(n, v, d)).collect();
        let mut all = mirror(&text);
        all.files.extend(packages.iter().map(|(n, _, d)| (format!("/pool/{n}.deb"), d.to_vec())));
        all
    };
    let mut altered = with("2.26.3", b"no package");
    altered.files.insert("/pool/nix-bin.deb".into(), b"another!!!".to_vec());
    let loader = ("./usr/lib/x/ld-linux-x.so.2", "#!/bin/sh\necho it breaks >&2\nexit 1\n");
    let mut said = Vec::new();
    for (mirror, status) in [
        (Mirror { until: "Fri, 02 Jan 2026 00:00:00 UTC", ..mirror("") }, 1),
        (Mirror { promised: Some(xz(b"else")), ..mirror("") }, 1),
        (mirror(""), 5),
        (mirror("Package: nix-bin\nVersion: 1\n\n"), 1),
        (Mirror { packages: b"no xz".to_vec(), ..mirror("") }, 1),
        (with("2.8.1", b""), 1),
        (altered, 1),
        (with("2.26.3", b"no package"), 1),
        (with("2.26.3", &deb(&[("../escape", "")])), 1),
        (with("2.26.3", &deb(&[("./usr/bin/nix", "")])), 1),
        (with("2.26.3", &deb(&[("./usr/bin/nix", ""), loader])), 1),
    ] {
        let home = home();
        home.write("good.pgp", &ring);
        let keys = format!("keyrings = [\"{}\"]", home.path().join("good.pgp").display());
        let text = refused(&home, &mirror.serve(), &keys, &INIT, status);
        said.push(text.replace(&*home.path().to_string_lossy(), "HOME"));
    }
    insta::with_settings!({ filters => vec![(r"[0-9a-f]{64}", "SUM")] }, {
        insta::assert_snapshot!(said.join("\n"));
    });
}

#[test]
fn errors_without_the_network() {
    let built = built();
    let done = built.run_with(&["rebuild", "hello", "--offline"], &[NOWHERE]);
    assert_eq!(done.status, 3, "{}", done.err);
    let without = refused_with(&home(), &["init", "x", "--base", "debian", "--offline"], &[NOWHERE], 3);
    insta::assert_snapshot!([done.err, without].join("\n"));
}

#[test]
fn errors_of_the_tarball_of_nix() {
    let home = home();
    let name = "/nix-2.34.8-x.tar.xz";
    let mut said = Vec::new();
    let sum = |text: String| (format!("{name}.sha256"), text.into_bytes());
    for files in
        [vec![], vec![sum("no sum".into())], vec![sum(hex(b"another")), (name.into(), b"this one".to_vec())]]
    {
        let address = serve(files.into_iter().collect(), MISSING);
        let tarball = format!("[store]\nnix-tarball = \"{address}{name}\"");
        said.push(refused(&home, &address, &tarball, &INIT, 1));
    }
    let odd = serve([("/x.sha256".into(), hex(b"").into_bytes())].into(), MISSING);
    said.push(refused(&home, &odd, &format!("[store]\nnix-tarball = \"{odd}/x\""), &INIT, 1));
    insta::with_settings!({ filters => vec![(r"[0-9a-f]{64}", "SUM")] }, {
        insta::assert_snapshot!(said.join("\n"));
    });
}
