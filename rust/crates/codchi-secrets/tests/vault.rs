//! The vault with real age files.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::path::Path;

use codchi_core::dirs::Dirs;
use codchi_core::name::MachineName;
use codchi_core::settings::{SecretKey, SecretPlace, SecretSettings};
use codchi_secrets::{Ask, Bundle, Private, SecretsError, Vault};

fn dirs(home: &Path) -> Dirs {
    let home = home.as_os_str().to_owned();
    Dirs::from_env(&move |n| (n == "HOME").then(|| home.clone()), 1000).unwrap()
}

fn settings(key: SecretKey) -> SecretSettings {
    SecretSettings { place: SecretPlace::File, key, passphrase_command: None }
}

fn bundle(all: &[(&str, &[u8])]) -> Bundle {
    let mut b = Bundle::new();
    for (name, value) in all {
        b.insert(*name, Private::copy(value).unwrap());
    }
    b
}

fn machine(name: &str) -> MachineName {
    name.parse().unwrap()
}

/// Every file below a folder.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in codchi_fs::read_dir(dir).unwrap_or_default() {
        if entry.path().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.push(entry.path());
        }
    }
    all
}

#[test]
fn what_is_stored_is_loaded_and_lies_nowhere_in_the_clear() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let (dirs, settings) = (dirs(home.path()), settings(SecretKey::File));
    let vault = Vault::new(&dirs, &settings, Ask::Nobody);
    let (a, b) = (machine("a"), machine("b"));
    vault.store(&a, bundle(&[("TOKEN", b"first-value"), ("cert", b"\0\xff\n")])).unwrap();
    vault.store(&b, bundle(&[("TOKEN", b"of-another")])).unwrap();
    vault.store(&a, bundle(&[("TOKEN", b"second-value")])).unwrap();
    assert_eq!(vault.load(&a).unwrap(), bundle(&[("TOKEN", b"second-value"), ("cert", b"\0\xff\n")]));
    assert_eq!(vault.names(&a).unwrap(), ["TOKEN", "cert"]);
    let all = files(home.path());
    assert!(all.len() >= 5, "{all:?}");
    for file in all {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", file.display());
        let text = codchi_fs::read(&file).unwrap();
        for value in ["first-value", "second-value", "of-another"] {
            assert!(!text.windows(value.len()).any(|w| w == value.as_bytes()), "{}", file.display());
        }
    }
    assert!(vault.unset(&a, "TOKEN").unwrap());
    assert!(!vault.unset(&a, "TOKEN").unwrap());
    assert_eq!(vault.load(&a).unwrap(), bundle(&[("cert", b"\0\xff\n")]));
    vault.copy(&a, &machine("c")).unwrap();
    for _ in 0..2 {
        // Repeated, as after this program was killed.
        vault.hand_over(&machine("c"), &machine("d")).unwrap();
    }
    assert!(vault.names(&machine("c")).unwrap().is_empty());
    assert_eq!(vault.load(&machine("d")).unwrap(), vault.load(&a).unwrap());
    vault.remove(&machine("d")).unwrap();
    vault.remove(&a).unwrap();
    assert!(vault.load(&a).unwrap().is_empty());
    assert_eq!(vault.load(&b).unwrap(), bundle(&[("TOKEN", b"of-another")]));
    vault.remove(&b).unwrap();
    assert_eq!(files(home.path()), Vec::<std::path::PathBuf>::new(), "the key is left");
}

/// One machine's first secret comes while another's last one goes: the key is not taken from under it.
#[test]
fn two_machines_at_once_lose_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (dirs, settings) = (dirs(home.path()), settings(SecretKey::File));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let (dirs, settings) = (&dirs, &settings);
            scope.spawn(move || {
                let (vault, m) = (Vault::new(dirs, settings, Ask::Nobody), machine(name));
                for round in 0..100 {
                    let all = bundle(&[("S", format!("{name}{round}").as_bytes())]);
                    vault.store(&m, bundle(&[("S", format!("{name}{round}").as_bytes())])).unwrap();
                    assert_eq!(vault.load(&m).unwrap(), all, "{name} {round}");
                    vault.remove(&m).unwrap();
                }
            });
        }
    });
    assert_eq!(files(home.path()), Vec::<std::path::PathBuf>::new(), "something is left");
    assert!(!dirs.secrets().exists());
}

#[test]
fn the_key_file_alone_opens_and_another_does_not() {
    let home = tempfile::tempdir().unwrap();
    let (dirs, settings) = (dirs(home.path()), settings(SecretKey::File));
    let vault = Vault::new(&dirs, &settings, Ask::Nobody);
    let m = machine("m");
    vault.store(&m, bundle(&[("S", b"v")])).unwrap();
    let key = dirs.secrets_key().with_extension("age");
    let right = codchi_fs::read(&key).unwrap();
    codchi_fs::remove_file(&key).unwrap();
    assert!(matches!(vault.load(&m), Err(SecretsError::NoKey(_))));
    // A key of another person.
    let other = tempfile::tempdir().unwrap();
    let other_dirs = self::dirs(other.path());
    Vault::new(&other_dirs, &settings, Ask::Nobody).store(&m, bundle(&[("S", b"x")])).unwrap();
    codchi_fs::write(&key, codchi_fs::read(other_dirs.secrets_key().with_extension("age")).unwrap()).unwrap();
    assert!(matches!(vault.load(&m), Err(SecretsError::Undecryptable { .. })));
    codchi_fs::write(&key, right).unwrap();
    assert_eq!(vault.load(&m).unwrap(), bundle(&[("S", b"v")]));
    // One flipped bit of the file is noticed.
    let file = dirs.secrets().join("m.age");
    let mut sealed = codchi_fs::read(&file).unwrap();
    *sealed.last_mut().unwrap() ^= 1;
    codchi_fs::write(&file, sealed).unwrap();
    assert!(matches!(vault.load(&m), Err(SecretsError::Undecryptable { .. })));
}

#[test]
fn a_passphrase_is_asked_for_once_and_a_wrong_one_is_told() {
    let home = tempfile::tempdir().unwrap();
    let (dirs, settings) = (dirs(home.path()), settings(SecretKey::Passphrase));
    let m = machine("m");
    let asked = Cell::new(0);
    let right = |_: bool| {
        asked.set(asked.get() + 1);
        Private::copy(b"correct horse\n").ok()
    };
    let vault = Vault::new(&dirs, &settings, Ask::Person(&right));
    vault.store(&m, bundle(&[("S", b"v")])).unwrap();
    vault.store(&m, bundle(&[("T", b"w")])).unwrap();
    assert_eq!(asked.get(), 1);
    let wrong = |_: bool| Private::copy(b"battery staple").ok();
    assert!(matches!(
        Vault::new(&dirs, &settings, Ask::Person(&wrong)).load(&m),
        Err(SecretsError::WrongPassphrase)
    ));
    assert!(matches!(Vault::new(&dirs, &settings, Ask::Nobody).load(&m), Err(SecretsError::NoPassphrase)));
    let by_command =
        SecretSettings { passphrase_command: Some("echo correct horse".into()), ..settings.clone() };
    let all = Vault::new(&dirs, &by_command, Ask::Nobody).load(&m).unwrap();
    assert_eq!(all, bundle(&[("S", b"v"), ("T", b"w")]));
    // Whatever the settings say now, what is there is opened by what closed it.
    let changed = SecretSettings { key: SecretKey::File, ..by_command };
    assert_eq!(Vault::new(&dirs, &changed, Ask::Nobody).load(&m).unwrap(), all);
}

#[test]
fn a_missing_secret_service_is_an_error_where_it_holds_the_secrets() {
    let home = tempfile::tempdir().unwrap();
    let dirs = dirs(home.path());
    let settings = settings(SecretKey::File);
    codchi_fs::create_private_dir(dirs.secrets()).unwrap();
    let index = r#"{"version":1,"place":"secret-service","names":["S"]}"#;
    codchi_fs::write(dirs.secrets().join("m.json"), index).unwrap();
    // The test's own process may have a bus; a copy of it has one that cannot be.
    if std::env::var_os("CODCHI_TEST_NO_BUS").is_none() {
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_missing_secret_service_is_an_error_where_it_holds_the_secrets"])
            .env("CODCHI_TEST_NO_BUS", "1")
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    let vault = Vault::new(&dirs, &settings, Ask::Nobody);
    assert_eq!(vault.names(&machine("m")).unwrap(), ["S"]);
    assert!(matches!(vault.load(&machine("m")), Err(SecretsError::NoService(_))));
}
