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
    let direct = key.details.direct_signatures.iter().filter(|s| s.verify_key(primary).is_ok());
    of_users.chain(direct).max_by_key(|s| s.created()).map(|s| expiry(primary, s))
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
