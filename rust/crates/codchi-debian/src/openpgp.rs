//! Signatures of Release files, against Debian's archive keys.

use std::time::{Duration, SystemTime};

use pgp::composed::{CleartextSignedMessage, Deserializable, DetachedSignature, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, VerifyingKey};

/// Debian's archive keys (bullseye to trixie), as the package `debian-archive-keyring` has them.
const DEBIAN: &[u8] = include_bytes!("../keys/debian-archive.gpg");

/// Clocks may differ by this much.
const TOLERANCE: Duration = Duration::from_secs(24 * 3600);

/// Keys whose signatures are believed.
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

/// Why no signature was accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// There is no signature, or something that is none.
    #[error("it has no signature that can be read")]
    Unreadable,
    /// None of the signatures is by a known key.
    #[error("it is signed by unknown keys only ({0})")]
    UnknownKey(String),
    /// A known key's signature does not fit the text.
    #[error("the signature by key {0} does not fit it")]
    Bad(String),
    /// The key's time is over.
    #[error("the signing key {0} has expired")]
    Expired(String),
    /// The hash algorithm can be forged.
    #[error("the signature by key {0} uses a weak hash algorithm")]
    Weak(String),
    /// The signature is from the future or past its own end.
    #[error("the signature by key {0} is not valid at this time; is the clock right?")]
    Time(String),
    /// The keyring itself is damaged.
    #[error("the keyring cannot be read: {0}")]
    Keyring(String),
}

impl Keyring {
    /// The keys that come with this program.
    pub fn debian() -> Result<Keyring, SignatureError> {
        Keyring::read(DEBIAN)
    }

    /// Reads transferable public keys (not armored). A key whose own signatures do not hold is an error.
    pub fn read(data: &[u8]) -> Result<Keyring, SignatureError> {
        let keys = SignedPublicKey::from_bytes_many(data)
            .and_then(|keys| keys.collect::<Result<Vec<_>, _>>())
            .map_err(|e| SignatureError::Keyring(e.to_string()))?;
        match keys.is_empty() {
            true => Err(SignatureError::Keyring("it is empty".into())),
            false => Ok(Keyring { keys }),
        }
    }

    /// Adds the keys of a file, armored or not.
    pub fn add(&mut self, data: &[u8]) -> Result<(), SignatureError> {
        let more = if data.starts_with(b"-----BEGIN") {
            SignedPublicKey::from_armor_many(data)
                .and_then(|(keys, _)| keys.collect::<Result<Vec<_>, _>>())
                .map_err(|e| SignatureError::Keyring(e.to_string()))?
        } else {
            Keyring::read(data)?.keys
        };
        if more.is_empty() {
            return Err(SignatureError::Keyring("it holds no key".into()));
        }
        self.keys.extend(more);
        Ok(())
    }

    /// The text of a clear-signed message (`InRelease`), if one of its signatures holds at the time `now`.
    pub fn clear_text(&self, message: &[u8], now: SystemTime) -> Result<String, SignatureError> {
        let text = std::str::from_utf8(message).map_err(|_| SignatureError::Unreadable)?;
        let (message, _) =
            CleartextSignedMessage::from_string(text).map_err(|_| SignatureError::Unreadable)?;
        // The same text that is hashed is handed out: nothing around the signed part is ever seen.
        let signed = message.signed_text();
        self.any(message.signatures().iter(), signed.as_bytes(), now)?;
        Ok(signed.replace("\r\n", "\n"))
    }

    /// Checks a detached, armored signature (`Release.gpg`), which may hold several.
    pub fn detached(&self, data: &[u8], signature: &[u8], now: SystemTime) -> Result<(), SignatureError> {
        let (signatures, _) =
            DetachedSignature::from_armor_many(signature).map_err(|_| SignatureError::Unreadable)?;
        let signatures: Vec<_> =
            signatures.collect::<Result<_, _>>().map_err(|_| SignatureError::Unreadable)?;
        self.any(signatures.iter().map(|s| &s.signature), data, now)
    }

    /// One good signature is enough; otherwise the reason that says most.
    fn any<'s>(
        &self,
        signatures: impl Iterator<Item = &'s Signature>,
        data: &[u8],
        now: SystemTime,
    ) -> Result<(), SignatureError> {
        let mut worst = None;
        let mut unknown = Vec::new();
        for signature in signatures {
            match self.check(signature, data, now) {
                Ok(()) => return Ok(()),
                Err(SignatureError::UnknownKey(id)) => unknown.push(id),
                Err(e) => worst = Some(e),
            }
        }
        Err(match worst {
            Some(e) => e,
            None if unknown.is_empty() => SignatureError::Unreadable,
            None => SignatureError::UnknownKey(unknown.join(", ")),
        })
    }

    fn check(&self, signature: &Signature, data: &[u8], now: SystemTime) -> Result<(), SignatureError> {
        for key in &self.keys {
            let primary = &key.primary_key;
            if issued_by(signature, primary) {
                let name = format!("{:X}", primary.fingerprint());
                let expires = primary_expiry(key).ok_or_else(|| SignatureError::Bad(name.clone()))?;
                return check_with(signature, primary, data, now, &name, &[expires]);
            }
            for subkey in &key.public_subkeys {
                if issued_by(signature, &subkey.key) {
                    let name = format!("{:X}", subkey.key.fingerprint());
                    let bad = || SignatureError::Bad(name.clone());
                    let primary = primary_expiry(key).ok_or_else(bad)?;
                    // A subkey is only as good as its binding: made by the primary key, for signing, and answered.
                    subkey.verify_bindings(&key.primary_key).map_err(|_| bad())?;
                    let binding = subkey.signatures.iter().max_by_key(|s| s.created()).ok_or_else(bad)?;
                    let bound = binding.typ() == Some(SignatureType::SubkeyBinding);
                    if !bound || !binding.key_flags().sign() {
                        return Err(bad());
                    }
                    let expires = expiry(&subkey.key, binding);
                    return check_with(signature, &subkey.key, data, now, &name, &[primary, expires]);
                }
            }
        }
        let id = signature.issuer_key_id().first().map(|id| id.to_string().to_uppercase());
        let id = id.or_else(|| signature.issuer_fingerprint().first().map(|f| format!("{f:X}")));
        Err(SignatureError::UnknownKey(id.unwrap_or_else(|| "no key named".into())))
    }
}

fn issued_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let fingerprints = signature.issuer_fingerprint();
    if fingerprints.is_empty() {
        signature.issuer_key_id().contains(&&key.legacy_key_id())
    } else {
        fingerprints.contains(&&key.fingerprint())
    }
}

/// When a key ends, by the signature that says so; `None` is never.
type Expiry = Option<SystemTime>;

fn expiry(key: &impl KeyDetails, by: &Signature) -> Expiry {
    let after = by.key_expiration_time().map(|d| Duration::from_secs(u64::from(d.as_secs())));
    after.filter(|d| !d.is_zero()).map(|d| SystemTime::from(key.created_at()) + d)
}

/// When the primary key ends; the outer `None` when it is revoked or nothing that holds says it is a key at all.
fn primary_expiry(key: &SignedPublicKey) -> Option<Expiry> {
    if !key.details.revocation_signatures.is_empty() {
        return None;
    }
    let primary = &key.primary_key;
    let of_users = key.details.users.iter().flat_map(|user| {
        user.signatures.iter().filter(move |s| {
            s.is_certification() && s.verify_certification(primary, pgp::types::Tag::UserId, &user.id).is_ok()
        })
    });
    let direct = || key.details.direct_signatures.iter().filter(|s| s.verify_key(primary).is_ok());
    // A direct signature that names no end (such as one that only names a revoker) does not take away a user ID's.
    let ending = direct().filter(|s| s.key_expiration_time().is_some());
    let newest = of_users.chain(ending).max_by_key(|s| s.created());
    newest.or_else(|| direct().max_by_key(|s| s.created())).map(|s| expiry(primary, s))
}

fn check_with(
    signature: &Signature,
    key: &impl VerifyingKey,
    data: &[u8],
    now: SystemTime,
    name: &str,
    expiries: &[Expiry],
) -> Result<(), SignatureError> {
    let name = name.to_owned();
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err(SignatureError::Bad(name));
    }
    if !matches!(
        signature.hash_alg(),
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)
    ) {
        return Err(SignatureError::Weak(name));
    }
    signature.verify(key, data).map_err(|_| SignatureError::Bad(name.clone()))?;
    let created: SystemTime = match signature.created() {
        Some(t) => t.into(),
        None => return Err(SignatureError::Bad(name)),
    };
    let lasts = signature.signature_expiration_time().map(|d| Duration::from_secs(u64::from(d.as_secs())));
    let over = lasts.is_some_and(|d| !d.is_zero() && created + d < now);
    if over || created > now + TOLERANCE || created < key.created_at().into() {
        return Err(SignatureError::Time(name));
    }
    if expiries.iter().flatten().any(|end| *end < now) {
        return Err(SignatureError::Expired(name));
    }
    Ok(())
}

/// Keys and signatures made on the spot, for tests here and of whole mirrors.
#[cfg(test)]
pub(crate) mod made {
    #![allow(clippy::unwrap_used)]
    use pgp::composed::{
        ArmorOptions, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedSecretKey, SubkeyParamsBuilder,
    };
    use pgp::packet::{SignatureConfig, Subpacket, SubpacketData, UserId};
    use pgp::ser::Serialize;
    use pgp::types::{Duration as Seconds, Password, SigningKey, Tag, Timestamp};
    use rand::thread_rng;

    use super::*;

    pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

    /// The time that tests play at: 2026-01-01.
    pub(crate) fn today() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    pub(crate) struct Key {
        pub secret: SignedSecretKey,
        /// The public half.
        pub keyring: Vec<u8>,
    }

    fn stamp(time: SystemTime) -> Timestamp {
        Timestamp::try_from(time).unwrap()
    }

    fn seconds(time: Duration) -> Seconds {
        Seconds::from_secs(u32::try_from(time.as_secs()).unwrap())
    }

    /// A key with a signing subkey, made at a time; the primary key may have an end.
    pub(crate) fn key(created: SystemTime, lasts: Option<Duration>) -> Key {
        key_of(KeyType::Ed25519Legacy, created, lasts)
    }

    pub(crate) fn key_of(kind: KeyType, created: SystemTime, lasts: Option<Duration>) -> Key {
        let subkey = SubkeyParamsBuilder::default()
            .key_type(kind.clone())
            .can_sign(true)
            .created_at(stamp(created))
            .build()
            .unwrap();
        let secret = SecretKeyParamsBuilder::default()
            .key_type(kind)
            .can_certify(true)
            .can_sign(true)
            .created_at(stamp(created))
            .primary_user_id("Archive <archive@example.org>".into())
            .subkey(subkey)
            .build()
            .unwrap()
            .generate(thread_rng())
            .unwrap();
        let mut public = secret.to_public_key();
        if let Some(lasts) = lasts {
            let mut config =
                config(&secret.primary_key, SignatureType::CertPositive, HashAlgorithm::Sha512, created);
            config
                .hashed_subpackets
                .push(Subpacket::regular(SubpacketData::KeyExpirationTime(seconds(lasts))).unwrap());
            let user: &UserId = &public.details.users[0].id;
            let signature = config
                .sign_certification(
                    &secret.primary_key,
                    &public.primary_key,
                    &Password::empty(),
                    Tag::UserId,
                    user,
                )
                .unwrap();
            let mut users = public.details.users.clone();
            users[0].signatures = vec![signature];
            public.details = SignedKeyDetails { users, ..public.details };
        }
        let keyring = public.to_bytes().unwrap();
        Key { secret, keyring }
    }

    fn config(
        key: &impl SigningKey,
        typ: SignatureType,
        hash: HashAlgorithm,
        created: SystemTime,
    ) -> SignatureConfig {
        let mut config = SignatureConfig::v4(typ, key.algorithm(), hash);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(stamp(created))).unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
        ];
        config
    }

    pub(crate) struct How {
        pub hash: HashAlgorithm,
        pub created: SystemTime,
        pub lasts: Option<Duration>,
    }

    impl Default for How {
        fn default() -> Self {
            How { hash: HashAlgorithm::Sha512, created: today(), lasts: None }
        }
    }

    pub(crate) fn clear_sign(text: &str, key: &impl SigningKey, how: &How) -> String {
        let mut config = config(key, SignatureType::Text, how.hash, how.created);
        if let Some(lasts) = how.lasts {
            let end = SubpacketData::SignatureExpirationTime(seconds(lasts));
            config.hashed_subpackets.push(Subpacket::regular(end).unwrap());
        }
        let message = CleartextSignedMessage::new(text, config, key, &Password::empty()).unwrap();
        message.to_armored_string(ArmorOptions::default()).unwrap()
    }

    pub(crate) fn detach_sign(data: &[u8], key: &impl SigningKey) -> String {
        let config = config(key, SignatureType::Binary, HashAlgorithm::Sha512, today());
        let signature = DetachedSignature::new(config.sign(key, &Password::empty(), data).unwrap());
        signature.to_armored_string(ArmorOptions::default()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::made::*;
    use super::*;

    const TEXT: &str = "Origin: Debian\n- a line that is escaped\nCodename: sid\n";

    #[test]
    fn the_keys_that_come_with_the_program_hold() {
        let keyring = Keyring::debian().unwrap();
        assert!(keyring.keys.len() >= 9);
        for key in &keyring.keys {
            let name = format!("{:X}", key.primary_key.fingerprint());
            assert!(matches!(primary_expiry(key), Some(Some(end)) if end > today()), "{name}");
            for subkey in &key.public_subkeys {
                subkey.verify_bindings(&key.primary_key).unwrap();
            }
        }
    }

    #[test]
    fn a_good_signature_gives_back_the_text() {
        let key = key(today() - DAY, Some(365 * DAY));
        let keyring = Keyring::read(&key.keyring).unwrap();
        let by_primary = clear_sign(TEXT, &key.secret.primary_key, &How::default());
        let by_subkey = clear_sign(TEXT, &key.secret.secret_subkeys[0].key, &How::default());
        for message in [by_primary, by_subkey] {
            assert_eq!(keyring.clear_text(message.as_bytes(), today()).unwrap().trim_end(), TEXT.trim_end());
        }
        let signature = detach_sign(TEXT.as_bytes(), &key.secret.primary_key);
        assert_eq!(keyring.detached(TEXT.as_bytes(), signature.as_bytes(), today()), Ok(()));
        let other = keyring.detached(b"another text", signature.as_bytes(), today());
        assert!(matches!(other, Err(SignatureError::Bad(_))), "{other:?}");
    }

    #[test]
    fn whatever_is_wrong_with_a_signature_is_told_apart() {
        let good = key(today() - DAY, Some(365 * DAY));
        let stranger = key(today() - DAY, None);
        let keyring = Keyring::read(&good.keyring).unwrap();
        let primary = &good.secret.primary_key;
        let sign = |how: How| clear_sign(TEXT, primary, &how);
        let check = |message: &str, now| keyring.clear_text(message.as_bytes(), now).unwrap_err();

        let tampered = sign(How::default()).replace("Codename: sid", "Codename: six");
        assert!(matches!(check(&tampered, today()), SignatureError::Bad(_)));

        let unknown = clear_sign(TEXT, &stranger.secret.primary_key, &How::default());
        assert!(matches!(check(&unknown, today()), SignatureError::UnknownKey(_)));

        let late = today() + 400 * DAY;
        let fresh = sign(How { created: late, ..How::default() });
        assert!(matches!(check(&fresh, late), SignatureError::Expired(_)));
        let by_subkey = clear_sign(TEXT, &good.secret.secret_subkeys[0].key, &How::default());
        assert!(matches!(check(&by_subkey, late), SignatureError::Expired(_)));

        // Ed25519 does not even make such a signature.
        let old = key_of(pgp::composed::KeyType::Rsa(2048), today() - DAY, None);
        let sha1 = How { hash: HashAlgorithm::Sha1, ..How::default() };
        let weak = clear_sign(TEXT, &old.secret.primary_key, &sha1);
        let result = Keyring::read(&old.keyring).unwrap().clear_text(weak.as_bytes(), today());
        assert!(matches!(result, Err(SignatureError::Weak(_))), "{result:?}");

        for how in [
            How { created: today() + 3 * DAY, ..How::default() },
            How { created: today() - 3 * DAY, ..How::default() },
            How { created: today() - DAY / 2, lasts: Some(DAY / 4), ..How::default() },
        ] {
            assert!(matches!(check(&sign(how), today()), SignatureError::Time(_)));
        }

        for junk in ["", "Origin: Debian\n", "<html>", &sign(How::default())[..200]] {
            assert_eq!(check(junk, today()), SignatureError::Unreadable);
        }
    }

    #[test]
    fn text_around_the_signed_part_is_never_used() {
        let key = key(today() - DAY, None);
        let keyring = Keyring::read(&key.keyring).unwrap();
        let message = clear_sign(TEXT, &key.secret.primary_key, &How::default());
        for around in [format!("Codename: evil\n{message}"), format!("{message}\nCodename: evil\n")] {
            if let Ok(text) = keyring.clear_text(around.as_bytes(), today()) {
                assert!(!text.contains("evil"), "{text}");
            }
        }
    }

    #[test]
    fn a_subkey_that_the_primary_key_did_not_bind_is_not_believed() {
        let (good, evil) = (key(today() - DAY, None), key(today() - DAY, None));
        let mut mixed = good.secret.to_public_key();
        mixed.public_subkeys = evil.secret.to_public_key().public_subkeys;
        let keyring = Keyring { keys: vec![mixed] };
        let message = clear_sign(TEXT, &evil.secret.secret_subkeys[0].key, &How::default());
        let result = keyring.clear_text(message.as_bytes(), today());
        assert!(matches!(result, Err(SignatureError::Bad(_))), "{result:?}");
    }

    #[test]
    fn further_keys_are_read_armored_or_not() {
        let (first, second, third) =
            (key(today() - DAY, None), key(today() - DAY, None), key(today() - DAY, None));
        let mut keyring = Keyring::read(&first.keyring).unwrap();
        keyring.add(&second.keyring).unwrap();
        keyring
            .add(third.secret.to_public_key().to_armored_string(Default::default()).unwrap().as_bytes())
            .unwrap();
        for key in [&first, &second, &third] {
            let message = clear_sign(TEXT, &key.secret.primary_key, &How::default());
            keyring.clear_text(message.as_bytes(), today()).unwrap();
        }
        assert!(matches!(keyring.add(b"no key"), Err(SignatureError::Keyring(_))));
        assert!(matches!(keyring.add(b"-----BEGIN PGP"), Err(SignatureError::Keyring(_))));
    }

    #[test]
    fn one_good_signature_among_strangers_is_enough() {
        let (known, stranger) = (key(today() - DAY, None), key(today() - DAY, None));
        let keyring = Keyring::read(&known.keyring).unwrap();
        let message = CleartextSignedMessage::new_many(TEXT, |text| {
            let sign = |key: &Key| {
                let signature = detach_sign(text.as_bytes(), &key.secret.primary_key);
                DetachedSignature::from_string(&signature).map(|(s, _)| s.signature)
            };
            Ok(vec![sign(&stranger)?, sign(&known)?])
        });
        let message = message.unwrap().to_armored_string(Default::default()).unwrap();
        assert!(keyring.clear_text(message.as_bytes(), today()).is_ok());
    }
}
