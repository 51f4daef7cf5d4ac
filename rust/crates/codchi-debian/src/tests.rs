//! Whole mirrors, served by a small HTTP server on this host and signed with keys made for the occasion.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use codchi_core::progress::{Event, Progress, Silent};
use codchi_core::report::{Diagnose, Kind};

use crate::hash;
use crate::openpgp::made::{DAY, How, Key, clear_sign, detach_sign, key, today};
use crate::openpgp::{Keyring, SignatureError};
use crate::{Error, Fetch, Freshness, Mirror, Result, Settings, State, Suite};

/// How the server answers for a path.
#[derive(Clone)]
enum Reply {
    Body(Vec<u8>),
    Status(u16),
    /// Sends on to another place.
    Moved(String),
    /// Promises all and sends a part.
    Cut(Vec<u8>),
    /// Sends a part and then nothing, with the connection open.
    Stall(Vec<u8>),
    /// The first answers in order, then the last for ever.
    Then(Vec<Reply>),
}

#[derive(Default)]
struct Shared {
    replies: HashMap<String, Reply>,
    /// Request lines, with the header `authorization` where there was one.
    seen: Vec<String>,
}

/// An HTTP server with as many threads as there are connections; ends with the process.
struct Server {
    port: u16,
    state: Arc<Mutex<Shared>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(Shared::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Server { port, state }
    }

    fn put(&self, path: &str, reply: Reply) {
        self.state.lock().unwrap().replies.insert(format!("/{path}"), reply);
    }

    fn body(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.put(path, Reply::Body(body.into()));
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    fn mirror(&self) -> Mirror {
        self.mirror_with(|_| {})
    }

    fn mirror_with(&self, change: impl Fn(&mut Settings)) -> Mirror {
        let mut settings = Settings {
            mirror: Some(format!("http://127.0.0.1:{}/debian", self.port)),
            ..Settings::default()
        };
        change(&mut settings);
        let mut mirror = Mirror::discover_in(&settings, Path::new("/nonexistent")).unwrap();
        mirror.client.hurry();
        mirror
    }
}

fn serve(stream: TcpStream, state: &Mutex<Shared>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut seen = line.rsplit_once(" HTTP/").unwrap_or_default().0.to_owned();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if let Some((name, value)) = header.split_once(':') {
                if name.eq_ignore_ascii_case("authorization")
                    || name.eq_ignore_ascii_case("proxy-authorization")
                {
                    seen += &format!(" [{}]", value.trim());
                }
            } else {
                break;
            }
        }
        let reply = {
            let mut state = state.lock().unwrap();
            state.seen.push(seen);
            match state.replies.get_mut(&path) {
                Some(Reply::Then(list)) if list.len() > 1 => list.remove(0),
                Some(Reply::Then(list)) => list[0].clone(),
                Some(reply) => reply.clone(),
                None => Reply::Status(404),
            }
        };
        let head =
            |status: u16, length: usize| format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
        match reply {
            Reply::Body(body) => {
                let _ = stream.write_all(head(200, body.len()).as_bytes());
                let _ = stream.write_all(&body);
            }
            Reply::Status(status) => {
                let _ = stream.write_all(head(status, 0).as_bytes());
            }
            Reply::Moved(to) => {
                let head = format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
            }
            Reply::Cut(body) => {
                let _ = stream.write_all(head(200, body.len()).as_bytes());
                let _ = stream.write_all(&body[..body.len() / 2]);
                return;
            }
            Reply::Stall(body) => {
                let _ = stream.write_all(head(200, body.len()).as_bytes());
                let _ = stream.write_all(&body[..body.len() / 2]);
                // Until the client gives up.
                let _ = reader.read(&mut [0]);
                return;
            }
            Reply::Then(_) => unreachable!("lists do not nest"),
        }
    }
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut w = liblzma::write::XzEncoder::new(Vec::new(), 1);
    w.write_all(data).unwrap();
    w.finish().unwrap()
}

/// A mirror with one suite, `sid`, of two packages.
struct Fixture {
    server: Server,
    key: Key,
    keyring: Keyring,
    temp: tempfile::TempDir,
}

const DEB: &[u8] = b"the content of a package";

impl Fixture {
    fn new() -> Fixture {
        let key = key(today() - DAY, None);
        let keyring = Keyring::read(&key.keyring).unwrap();
        let fixture = Fixture { server: Server::start(), key, keyring, temp: tempfile::tempdir().unwrap() };
        fixture.publish("1.0", 0, 7);
        fixture
    }

    fn packages(version: &str) -> Vec<u8> {
        let paragraph = |name: &str, more: &str| {
            let sum = hash::to_hex(&hash::sha256(DEB));
            format!(
                "Package: {name}\nVersion: {version}\nFilename: pool/main/{name}_1+x.deb\nSize: {}\nSHA256: {sum}\n{more}\n",
                DEB.len()
            )
        };
        xz(format!("{}{}", paragraph("app", "Depends: lib (>= 1)\n"), paragraph("lib", "")).as_bytes())
    }

    fn release(version: &str, day: u64, valid_days: u64) -> String {
        let packages = Fixture::packages(version);
        let sum = hash::to_hex(&hash::sha256(&packages));
        format!(
            "Origin: Debian\nCodename: sid\nDate: Thu, {:02} Jan 2026 00:00:00 UTC\n\
            Valid-Until: Thu, {:02} Jan 2026 00:00:00 UTC\nAcquire-By-Hash: yes\n\
            SHA256:\n {sum} {} main/binary-amd64/Packages.xz\n",
            1 + day,
            1 + day + valid_days,
            packages.len()
        )
    }

    fn sign(&self, release: &str) -> String {
        clear_sign(release, &self.key.secret.primary_key, &How::default())
    }

    /// Puts the suite in place, made on a day of January 2026.
    fn publish(&self, version: &str, day: u64, valid_days: u64) {
        self.server
            .body("debian/dists/sid/InRelease", self.sign(&Fixture::release(version, day, valid_days)));
        self.server.body("debian/dists/sid/main/binary-amd64/Packages.xz", Fixture::packages(version));
    }

    fn state(&self, mirror: &Mirror, freshness: Freshness) -> Result<State> {
        self.state_at(mirror, freshness, today(), &Silent)
    }

    fn state_at(
        &self,
        mirror: &Mirror,
        freshness: Freshness,
        now: std::time::SystemTime,
        progress: &dyn Progress,
    ) -> Result<State> {
        State::load_with(
            mirror,
            &self.keyring,
            now,
            "sid",
            "x86_64-linux",
            self.temp.path(),
            freshness,
            progress,
        )
    }

    fn suite(&self, mirror: &Mirror, freshness: Freshness) -> Result<Suite> {
        self.state(mirror, freshness)?.packages(mirror, self.temp.path(), &[], &Silent)
    }

    fn fetch(&self, mirror: &Mirror, url: &str, content: &[u8]) -> Result<()> {
        let fetch = Fetch {
            url: url.into(),
            sha256: hash::to_hex(&hash::sha256(content)),
            size: content.len() as u64,
            dest: self.temp.path().join("debs/app.deb"),
            what: "app".into(),
        };
        mirror.fetch_all(&[fetch], 3, &Silent)
    }

    /// Files below the cache, without folders.
    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, out: &mut Vec<String>) {
            for entry in codchi_fs::read_dir(dir).unwrap() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), out),
                    false => out.push(entry.file_name().to_string_lossy().into_owned()),
                }
            }
        }
        let mut out = Vec::new();
        walk(self.temp.path(), &mut out);
        out
    }
}

/// Keeps warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn report(&self, event: Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.lock().unwrap().push(text.into());
        }
    }
}

#[test]
fn a_signed_suite_is_read_and_asked_for_again_only_when_it_is_old() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let suite = f.suite(&mirror, Freshness::Check).unwrap();
    let names: Vec<_> = suite.closure(&["app"]).unwrap().into_iter().map(|r| (r.name, r.depends)).collect();
    assert_eq!(names, [("app".into(), vec!["lib".into()]), ("lib".into(), vec![])]);
    assert_eq!(suite.find("app").unwrap().url(), "mirror://debian/pool/main/app_1+x.deb");
    // By its sum first; this mirror does not have that.
    let seen = f.server.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen[1].contains("/binary-amd64/by-hash/SHA256/"), "{seen:?}");

    f.suite(&mirror, Freshness::Check).unwrap();
    assert_eq!(f.server.seen(), ["GET /debian/dists/sid/InRelease"]);
    f.suite(&mirror, Freshness::Offline).unwrap();
    assert_eq!(f.server.seen(), [""; 0]);
    // The copy was written by the real clock, which is not the one that the test plays at: its age is unknown.
    let real = std::time::SystemTime::now();
    let within = Freshness::Within(Duration::from_secs(600));
    let result = f.state_at(&f.server.mirror_with(|s| s.accept_stale = true), within, real, &Silent);
    result.unwrap();
    assert_eq!(f.server.seen(), [""; 0]);
}

#[test]
fn a_change_of_the_mirror_changes_the_fingerprint() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let first = f.state(&mirror, Freshness::Check).unwrap().fingerprint().to_owned();
    assert_eq!(f.state(&mirror, Freshness::Check).unwrap().fingerprint(), first);
    f.publish("2.0", 0, 7);
    let suite = f.suite(&mirror, Freshness::Check).unwrap();
    assert_ne!(suite.fingerprint(), first);
    assert_eq!(suite.find("lib").unwrap().version, "2.0");
}

#[test]
fn nothing_with_a_bad_signature_is_used_or_kept() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let good = f.sign(&Fixture::release("1.0", 0, 7));
    let stranger = clear_sign(
        &Fixture::release("1.0", 0, 7),
        &key(today() - DAY, None).secret.primary_key,
        &How::default(),
    );
    for (message, unknown) in [(good.replace("Origin: Debian", "Origin: Debiam"), false), (stranger, true)] {
        f.server.body("debian/dists/sid/InRelease", message);
        let error = f.state(&mirror, Freshness::Check).err().unwrap();
        let Error::Signature { source, .. } = &error else { panic!("{error}") };
        assert_eq!(matches!(source, SignatureError::UnknownKey(_)), unknown, "{error}");
        assert!(error.hints()[0].contains("nothing of this mirror was used"));
        assert_eq!(f.files(), [""; 0]);
    }
    f.server.body("debian/dists/sid/InRelease", Fixture::release("1.0", 0, 7));
    assert!(matches!(f.state(&mirror, Freshness::Check), Err(Error::Signature { .. })), "unsigned");
}

#[test]
fn a_copy_that_was_changed_on_disk_is_not_believed() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    f.suite(&mirror, Freshness::Check).unwrap();
    let copy = f.temp.path().join("lists/debian_sid_InRelease");
    let text = codchi_fs::read_to_string(&copy).unwrap();
    codchi_fs::write(&copy, text.replace("Origin: Debian", "Origin: Debian\nX: y")).unwrap();
    assert!(matches!(f.state(&mirror, Freshness::Offline), Err(Error::Offline(_))));
    f.state(&mirror, Freshness::Check).unwrap();
    assert_eq!(codchi_fs::read_to_string(&copy).unwrap(), text);
    for entry in codchi_fs::read_dir(f.temp.path().join("lists/by-hash")).unwrap() {
        codchi_fs::write(entry.path(), "changed").unwrap();
    }
    f.server.seen();
    f.suite(&mirror, Freshness::Check).unwrap();
    assert!(f.server.seen().iter().any(|l| l.contains("Packages.xz")));
}

#[test]
fn a_separate_signature_does_where_there_is_no_inrelease() {
    let f = Fixture::new();
    let release = Fixture::release("1.0", 0, 7);
    f.server.put("debian/dists/sid/InRelease", Reply::Status(404));
    f.server.body("debian/dists/sid/Release", release.clone());
    f.server.body("debian/dists/sid/Release.gpg", detach_sign(release.as_bytes(), &f.key.secret.primary_key));
    let mirror = f.server.mirror();
    f.suite(&mirror, Freshness::Check).unwrap();
    f.suite(&mirror, Freshness::Offline).unwrap();
    f.server.body("debian/dists/sid/Release", release.replace("Origin: Debian", "Origin: Debian\nX: y"));
    assert!(matches!(f.state(&mirror, Freshness::Check), Err(Error::Signature { .. })));
}

#[test]
fn an_index_that_is_not_the_signed_one_is_refused() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let packages = "debian/dists/sid/main/binary-amd64/Packages.xz";
    let mut same_size = Fixture::packages("1.0");
    *same_size.last_mut().unwrap() ^= 1;
    for (body, words) in
        [(same_size, "SHA-256"), (vec![0; 5], "5 bytes instead of"), (vec![0; 100_000], "too big")]
    {
        f.server.body(packages, body);
        let error = f.suite(&mirror, Freshness::Check).err().unwrap();
        assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(words), "{error}");
        assert_eq!(f.files(), ["debian_sid_InRelease"]);
    }
    f.server.put(packages, Reply::Status(404));
    let error = f.suite(&mirror, Freshness::Check).err().unwrap();
    assert!(
        matches!(&error, Error::Missing { what, .. } if what.contains("package index of `sid`")),
        "{error}"
    );
}

#[test]
fn a_stale_mirror_is_an_error_unless_it_is_accepted() {
    let f = Fixture::new();
    let late = today() + 30 * DAY;
    let error = f.state_at(&f.server.mirror(), Freshness::Check, late, &Silent).err().unwrap();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert!(
        error
            .hints()
            .iter()
            .any(|h| h.contains("CODCHI_BASE_ACCEPT_STALE=1") && h.contains("accept-expired"))
    );
    let warnings = Warnings::default();
    f.state_at(&f.server.mirror_with(|s| s.accept_stale = true), Freshness::Check, late, &warnings).unwrap();
    assert_eq!(warnings.0.into_inner().unwrap().len(), 1);
}

#[test]
fn an_older_state_than_the_one_at_hand_is_not_taken() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    f.publish("2.0", 3, 7);
    let newest = f.suite(&mirror, Freshness::Check).unwrap();
    f.publish("1.0", 0, 7);
    let warnings = Warnings::default();
    let state = f.state_at(&mirror, Freshness::Check, today(), &warnings).unwrap();
    assert_eq!(state.fingerprint(), newest.fingerprint());
    assert!(warnings.0.into_inner().unwrap()[0].contains("older"));
}

#[test]
fn what_does_not_exist_is_told_with_what_does() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let suite = f.suite(&mirror, Freshness::Check).unwrap();
    let error = suite.closure(&["ap"]).unwrap_err();
    assert!(
        matches!(&error, Error::NoPackage { nearest, .. } if nearest.contains(&"app".to_owned())),
        "{error:?}"
    );
    assert_eq!(error.kind(), Kind::NotFound);
    let woody = State::load(&mirror, "woody", "x86_64-linux", f.temp.path(), Freshness::Check, &Silent);
    assert!(matches!(woody.err(), Some(Error::NoSuite(_))));
    let (keyring, dir) = (&f.keyring, f.temp.path());
    let mips =
        State::load_with(&mirror, keyring, today(), "sid", "mips64el-linux", dir, Freshness::Check, &Silent);
    let error = mips.err().unwrap();
    assert!(
        matches!(&error, Error::BadIndex { reason, .. } if reason.contains("binary-mips64el/Packages.xz")),
        "{error}"
    );
}

#[test]
fn files_that_are_missing_wrong_or_cut_are_errors_that_name_the_package() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let url = "mirror://debian/pool/main/app_1+x.deb";
    let path = "debian/pool/main/app_1%2Bx.deb";
    let error = f.fetch(&mirror, url, DEB).unwrap_err();
    assert!(matches!(&error, Error::Missing { what, .. } if what == "the package `app`"), "{error}");
    assert!(error.hints()[0].contains("codchi update"));

    f.server.body(path, "the content of a packagE");
    assert!(matches!(f.fetch(&mirror, url, DEB), Err(Error::Mismatch { .. })));
    f.server.put(path, Reply::Status(403));
    let error = f.fetch(&mirror, url, DEB).unwrap_err();
    assert!(matches!(error, Error::Refused { status: 403, .. }) && error.kind() == Kind::Host);

    for bad in [Reply::Cut(DEB.into()), Reply::Stall(DEB.into()), Reply::Status(503)] {
        f.server.seen();
        f.server.put(path, bad.clone());
        let error = f.fetch(&mirror, url, DEB).unwrap_err();
        assert!(matches!(error, Error::Network { .. } | Error::Mismatch { .. }), "{error}");
        assert_eq!(f.server.seen().len(), 4);
        // It passes: the next try gets it.
        f.server.put(path, Reply::Then(vec![bad, Reply::Body(DEB.into())]));
        f.fetch(&mirror, url, DEB).unwrap();
        assert_eq!(codchi_fs::read(f.temp.path().join("debs/app.deb")).unwrap(), DEB);
        assert_eq!(f.files(), ["app.deb"]);
        codchi_fs::remove_file(f.temp.path().join("debs/app.deb")).unwrap();
    }
    assert_eq!(f.files(), [""; 0]);
}

#[test]
fn what_is_there_is_not_downloaded_again_but_what_is_damaged_is() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let url = "mirror://debian/pool/main/app_1+x.deb";
    f.server.body("debian/pool/main/app_1%2Bx.deb", DEB);
    f.fetch(&mirror, url, DEB).unwrap();
    f.server.seen();
    f.fetch(&mirror, url, DEB).unwrap();
    assert_eq!(f.server.seen(), [""; 0]);
    let mut damaged = DEB.to_vec();
    damaged[0] ^= 1;
    codchi_fs::write(f.temp.path().join("debs/app.deb"), damaged).unwrap();
    f.fetch(&mirror, url, DEB).unwrap();
    assert_eq!(f.server.seen().len(), 1);
    assert_eq!(codchi_fs::read(f.temp.path().join("debs/app.deb")).unwrap(), DEB);
}

#[test]
fn parts_of_a_process_that_was_killed_are_removed_and_those_of_others_kept() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    f.server.body("debian/pool/main/app_1%2Bx.deb", DEB);
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let folder = f.temp.path().join("debs");
    codchi_fs::create_dir_all(&folder).unwrap();
    codchi_fs::write(folder.join(format!(".x.deb.{}.0.part", dead.id())), "").unwrap();
    codchi_fs::write(folder.join(".y.deb.1.0.part"), "").unwrap();
    f.fetch(&mirror, "mirror://debian/pool/main/app_1+x.deb", DEB).unwrap();
    let mut files = f.files();
    files.sort();
    assert_eq!(files, [".y.deb.1.0.part", "app.deb"]);
}

#[test]
fn many_files_come_at_once_and_the_first_failure_ends_it() {
    let f = Fixture::new();
    let mirror = f.server.mirror();
    let fetches: Vec<Fetch> = (0..40)
        .map(|i| {
            let content = format!("package {i}");
            f.server.body(&format!("debian/pool/{i}.deb"), content.clone());
            Fetch {
                url: format!("mirror://debian/pool/{i}.deb"),
                sha256: hash::to_hex(&hash::sha256(content.as_bytes())),
                size: content.len() as u64,
                dest: f.temp.path().join(format!("debs/{i}.deb")),
                what: format!("p{i}"),
            }
        })
        .collect();
    mirror.fetch_all(&fetches, 8, &Silent).unwrap();
    assert_eq!(f.files().len(), 40);
    mirror.fetch_all(&[], 8, &Silent).unwrap();
    let unchecked = Fetch { sha256: String::new(), ..fetches[0].clone() };
    assert!(matches!(mirror.fetch_all(&[unchecked], 1, &Silent), Err(Error::BadIndex { .. })));
}

#[test]
fn logins_are_sent_and_never_shown() {
    let f = Fixture::new();
    let mirror = f.server.mirror_with(|s| {
        s.mirror = Some(format!("http://me:secret@127.0.0.1:{}/debian", f.server.port));
    });
    f.state(&mirror, Freshness::Check).unwrap();
    assert_eq!(f.server.seen(), ["GET /debian/dists/sid/InRelease [Basic bWU6c2VjcmV0]"]);
    let error = f.fetch(&mirror, "mirror://debian/pool/none.deb", DEB).unwrap_err();
    let shown = format!("{error} {error:?} {:?}", error.hints());
    assert!(!shown.contains("secret") && !shown.contains("bWU6"), "{shown}");
}

#[test]
fn a_server_may_send_on_to_others_but_not_for_ever_nor_with_the_login() {
    let f = Fixture::new();
    let login =
        |s: &mut Settings| s.mirror = Some(format!("http://me:secret@127.0.0.1:{}/debian", f.server.port));
    let mirror = f.server.mirror_with(login);
    let other = Server::start();
    other.body("app.deb", DEB);
    f.server.put("debian/pool/app.deb", Reply::Moved("/debian/moved/app.deb".into()));
    f.server.put("debian/moved/app.deb", Reply::Moved(format!("http://127.0.0.1:{}/app.deb", other.port)));
    f.fetch(&mirror, "mirror://debian/pool/app.deb", DEB).unwrap();
    let seen = f.server.seen();
    assert!(seen.len() == 2 && seen.iter().all(|l| l.ends_with("[Basic bWU6c2VjcmV0]")), "{seen:?}");
    assert_eq!(other.seen(), ["GET /app.deb"]);
    f.server.put("debian/pool/loop.deb", Reply::Moved("/debian/pool/loop.deb".into()));
    codchi_fs::remove_file(f.temp.path().join("debs/app.deb")).unwrap();
    let error = f.fetch(&mirror, "mirror://debian/pool/loop.deb", DEB).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(f.server.seen().len() < 10);
}

#[test]
fn plain_requests_go_to_the_proxy_as_they_are() {
    let f = Fixture::new();
    // The server plays the proxy, which is asked for whole addresses.
    let target = "http://mirror.example/debian/dists/sid/InRelease";
    let release = f.sign(&Fixture::release("1.0", 0, 7));
    f.server.state.lock().unwrap().replies.insert(target.into(), Reply::Body(release.into()));
    let mirror = f.server.mirror_with(|s| {
        s.mirror = Some("http://mirror.example/debian".into());
        s.proxy = Some(format!("http://me:secret@127.0.0.1:{}", f.server.port));
    });
    f.state(&mirror, Freshness::Check).unwrap();
    assert_eq!(f.server.seen(), [format!("GET {target} [Basic bWU6c2VjcmV0]")]);
}

#[test]
fn a_mirror_that_cannot_be_reached_is_the_hosts_problem() {
    let f = Fixture::new();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mirror = f.server.mirror_with(|s| s.mirror = Some(format!("http://127.0.0.1:{port}/debian")));
    let error = f.state(&mirror, Freshness::Check).err().unwrap();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Host);
    assert!(error.hints().iter().any(|h| h.contains("base.mirror")));
    assert!(matches!(f.state(&mirror, Freshness::Offline), Err(Error::Offline(_))));

    // With lists at hand it goes on, and says so.
    let known = f.suite(&f.server.mirror(), Freshness::Check).unwrap();
    let warnings = Warnings::default();
    let state = f.state_at(&mirror, Freshness::Check, today(), &warnings).unwrap();
    assert_eq!(state.fingerprint(), known.fingerprint());
    assert!(warnings.0.into_inner().unwrap()[0].contains("at hand"));
    assert!(matches!(
        f.state_at(&mirror, Freshness::Check, today() + 30 * DAY, &Silent),
        Err(Error::Stale { .. })
    ));
}

#[test]
fn a_full_disk_is_told_as_such() {
    let error = Error::File(codchi_fs::FsError {
        op: "write",
        path: "/cache/debs/x.deb".into(),
        source: std::io::Error::from_raw_os_error(28),
    });
    assert!(error.hints()[0].contains("disk is full"));
}
