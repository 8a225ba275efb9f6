//! Keys at rest: AES-256-GCM under a master key.
//!
//! A ciphertext is version ‖ nonce ‖ encrypted PKCS#8 or MAC key ‖ tag. The associated data names the
//! version, the master key, the kid, the algorithm and the use, and what tokens call a MAC key, so
//! that a row cannot be passed off as another one.

use ring::{
    aead::{Aad, NONCE_LEN, Nonce},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use zeroize::Zeroizing;

use super::{
    mac,
    master::{MasterKey, MasterKeys},
    rs256::{self, Rs256Key},
    signer::Es256Signer,
};
use crate::{
    domain::{
        id::{Kid, MasterKeyId, UserId},
        key::{KeyAlgorithm, KeyRecord, KeyTimes, KeyUse, SealedKey},
    },
    entropy::{Entropy, EntropyError},
};
use countersign_verifier::PublicKey;

/// The layout of ciphertexts made today.
const VERSION: u8 = 1;

/// The length of a refresh-MAC key, in bytes.
const MAC_KEY_LEN: usize = 32;

/// Why a key cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// The master key that is needed is not here.
    #[error("master key {0} is needed and not here")]
    MasterKeyMissing(MasterKeyId),
    /// The ciphertext does not open, or holds something else than it says.
    #[error(
        "the stored key {0} does not open with its master key: the row or the master key was altered"
    )]
    Altered(Kid),
    /// The same of the second factor of a user.
    #[error(
        "the second factor of user {0} does not open with its master key: the row or the master key was altered"
    )]
    AlteredFactor(UserId),
    /// A new key could not be made.
    #[error("a key could not be generated")]
    Generation,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// What a ciphertext is bound to.
#[derive(Clone, Copy)]
struct Binding<'a> {
    master_id: MasterKeyId,
    kid: &'a Kid,
    algorithm: KeyAlgorithm,
    key_use: KeyUse,
    token_version: Option<u32>,
}

impl Binding<'_> {
    fn associated_data(self) -> Aad<Vec<u8>> {
        let mut data = vec![VERSION];
        data.extend_from_slice(self.master_id.uuid().as_bytes());
        // Of fixed length, so that no two bindings read the same.
        data.extend_from_slice(self.kid.as_str().as_bytes());
        data.extend_from_slice(self.algorithm.as_str().as_bytes());
        data.push(0);
        data.extend_from_slice(self.key_use.as_str().as_bytes());
        if let Some(version) = self.token_version {
            data.push(0);
            data.extend_from_slice(&version.to_be_bytes());
        }
        Aad::from(data)
    }
}

/// Generates a signing key and seals it under the master key `master_id`.
pub fn generate(
    masters: &MasterKeys,
    master_id: MasterKeyId,
    times: KeyTimes,
    entropy: &Entropy,
) -> Result<KeyRecord, SealingError> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, entropy.secure_random())
            .map_err(|_| SealingError::Generation)?;
    let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
    let pair = Es256Signer::parse(&pkcs8, entropy).map_err(|_| SealingError::Generation)?;
    let kid = kid_of(&pair).ok_or(SealingError::Generation)?;
    let binding = Binding {
        master_id,
        kid: &kid,
        algorithm: KeyAlgorithm::Es256,
        key_use: KeyUse::Signing,
        token_version: None,
    };
    let sealed = seal(masters, binding, &pkcs8, entropy)?;
    Ok(KeyRecord {
        kid,
        key_use: KeyUse::Signing,
        algorithm: KeyAlgorithm::Es256,
        version: None,
        times,
        sealed,
    })
}

/// Generates an RSA key for RS256 and seals it under the master key `master_id`.
///
/// Takes some tenths of a second of one core, now and then more: not for threads that answer requests.
pub fn generate_rs256(
    masters: &MasterKeys,
    master_id: MasterKeyId,
    times: KeyTimes,
    entropy: &Entropy,
) -> Result<KeyRecord, SealingError> {
    let pkcs8 = rs256::generate(entropy)?.ok_or(SealingError::Generation)?;
    let key = Rs256Key::parse(&pkcs8, entropy).ok_or(SealingError::Generation)?;
    let binding = Binding {
        master_id,
        kid: key.kid(),
        algorithm: KeyAlgorithm::Rs256,
        key_use: KeyUse::IdTokenRs256,
        token_version: None,
    };
    let sealed = seal(masters, binding, &pkcs8, entropy)?;
    Ok(KeyRecord {
        kid: key.kid().clone(),
        key_use: KeyUse::IdTokenRs256,
        algorithm: KeyAlgorithm::Rs256,
        version: None,
        times,
        sealed,
    })
}

/// Draws the refresh-MAC key of this version and seals it under the master key `master_id`.
pub fn generate_mac(
    masters: &MasterKeys,
    master_id: MasterKeyId,
    version: u32,
    times: KeyTimes,
    entropy: &Entropy,
) -> Result<KeyRecord, SealingError> {
    let secret = Zeroizing::new(entropy.bytes::<MAC_KEY_LEN>()?);
    let kid = mac::kid_of(&secret).ok_or(SealingError::Generation)?;
    let binding = Binding {
        master_id,
        kid: &kid,
        algorithm: KeyAlgorithm::Hs256,
        key_use: KeyUse::RefreshMac,
        token_version: Some(version),
    };
    let sealed = seal(masters, binding, &*secret, entropy)?;
    Ok(KeyRecord {
        kid,
        key_use: KeyUse::RefreshMac,
        algorithm: KeyAlgorithm::Hs256,
        version: Some(version),
        times,
        sealed,
    })
}

/// Opens a stored key. The public key is recomputed from the private one: nothing is published
/// because the database says so.
pub fn open(
    masters: &MasterKeys,
    record: &KeyRecord,
    entropy: &Entropy,
) -> Result<(EcdsaKeyPair, PublicKey), SealingError> {
    let altered = || SealingError::Altered(record.kid.clone());
    let pkcs8 = unseal(masters, record)?;
    let pair = Es256Signer::parse(&pkcs8, entropy).map_err(|_| altered())?;
    let public = PublicKey::from_uncompressed(pair.public_key().as_ref()).map_err(|_| altered())?;
    if public.kid() != record.kid.as_str() {
        return Err(altered());
    }
    Ok((pair, public))
}

/// Opens a stored RSA key. The public key is recomputed, as that of other keys is.
pub fn open_rs256(
    masters: &MasterKeys,
    record: &KeyRecord,
    entropy: &Entropy,
) -> Result<Rs256Key, SealingError> {
    let pkcs8 = unseal(masters, record)?;
    let key = Rs256Key::parse(&pkcs8, entropy);
    key.filter(|key| *key.kid() == record.kid)
        .ok_or_else(|| SealingError::Altered(record.kid.clone()))
}

/// Opens a stored refresh-MAC key: its version and the secret.
pub fn open_mac(
    masters: &MasterKeys,
    record: &KeyRecord,
) -> Result<(u32, Zeroizing<[u8; MAC_KEY_LEN]>), SealingError> {
    let altered = || SealingError::Altered(record.kid.clone());
    let secret = unseal(masters, record)?;
    let secret = secret.as_slice().try_into().map_err(|_| altered())?;
    let secret = Zeroizing::new(secret);
    let version = record.version.ok_or_else(altered)?;
    if mac::kid_of(&secret).as_ref() != Some(&record.kid) {
        return Err(altered());
    }
    Ok((version, secret))
}

/// Seals a stored key anew under another master key.
pub fn reseal(
    masters: &MasterKeys,
    record: &KeyRecord,
    master_id: MasterKeyId,
    entropy: &Entropy,
) -> Result<SealedKey, SealingError> {
    let plaintext = unseal(masters, record)?;
    let binding = Binding {
        master_id,
        ..binding_of(record)
    };
    seal(masters, binding, &plaintext, entropy)
}

fn binding_of(record: &KeyRecord) -> Binding<'_> {
    Binding {
        master_id: record.sealed.master_id,
        kid: &record.kid,
        algorithm: record.algorithm,
        key_use: record.key_use,
        token_version: record.version,
    }
}

fn master_of(masters: &MasterKeys, id: MasterKeyId) -> Result<&MasterKey, SealingError> {
    masters.find(id).ok_or(SealingError::MasterKeyMissing(id))
}

fn seal(
    masters: &MasterKeys,
    binding: Binding<'_>,
    plaintext: &[u8],
    entropy: &Entropy,
) -> Result<SealedKey, SealingError> {
    let master = master_of(masters, binding.master_id)?;
    let nonce: [u8; NONCE_LEN] = entropy.bytes()?;
    let mut encrypted = plaintext.to_vec();
    master
        .sealing(binding.key_use)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            binding.associated_data(),
            &mut encrypted,
        )
        .map_err(|_| SealingError::Generation)?;
    let ciphertext = [&[VERSION], &nonce[..], &encrypted].concat();
    Ok(SealedKey {
        master_id: binding.master_id,
        ciphertext,
    })
}

fn unseal(masters: &MasterKeys, record: &KeyRecord) -> Result<Zeroizing<Vec<u8>>, SealingError> {
    let altered = || SealingError::Altered(record.kid.clone());
    let master = master_of(masters, record.sealed.master_id)?;
    let (version, rest) = record.sealed.ciphertext.split_first().ok_or_else(altered)?;
    let (nonce, encrypted) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(altered)?;
    if *version != VERSION {
        return Err(altered());
    }
    let mut opened = Zeroizing::new(encrypted.to_vec());
    let length = master
        .sealing(record.key_use)
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            binding_of(record).associated_data(),
            &mut opened,
        )
        .map_err(|_| altered())?
        .len();
    opened.truncate(length);
    Ok(opened)
}

/// What the secret of an app that makes one-time passwords is bound to: a row of another user, or
/// under another master key, does not open.
fn of_totp(master_id: MasterKeyId, subject: UserId) -> Aad<Vec<u8>> {
    let (master, subject) = (master_id.uuid(), subject.uuid());
    Aad::from(
        [
            &[VERSION],
            &master.as_bytes()[..],
            b"totp\0",
            subject.as_bytes(),
        ]
        .concat(),
    )
}

/// Seals the secret of a user's app that makes one-time passwords under the master key `master_id`.
pub fn seal_totp(
    masters: &MasterKeys,
    master_id: MasterKeyId,
    subject: UserId,
    secret: &[u8],
    entropy: &Entropy,
) -> Result<SealedKey, SealingError> {
    let nonce: [u8; NONCE_LEN] = entropy.bytes()?;
    let mut encrypted = secret.to_vec();
    master_of(masters, master_id)?
        .factors()
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            of_totp(master_id, subject),
            &mut encrypted,
        )
        .map_err(|_| SealingError::Generation)?;
    Ok(SealedKey {
        master_id,
        ciphertext: [&[VERSION], &nonce[..], &encrypted].concat(),
    })
}

/// Opens the secret of a user's app that makes one-time passwords.
pub fn open_totp(
    masters: &MasterKeys,
    subject: UserId,
    sealed: &SealedKey,
) -> Result<Zeroizing<Vec<u8>>, SealingError> {
    let altered = || SealingError::AlteredFactor(subject);
    let master = master_of(masters, sealed.master_id)?;
    let (version, rest) = sealed.ciphertext.split_first().ok_or_else(altered)?;
    let (nonce, encrypted) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(altered)?;
    if *version != VERSION {
        return Err(altered());
    }
    let mut opened = Zeroizing::new(encrypted.to_vec());
    let length = master
        .factors()
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            of_totp(sealed.master_id, subject),
            &mut opened,
        )
        .map_err(|_| altered())?
        .len();
    opened.truncate(length);
    Ok(opened)
}

fn kid_of(pair: &EcdsaKeyPair) -> Option<Kid> {
    let public = PublicKey::from_uncompressed(pair.public_key().as_ref()).ok()?;
    Kid::parse(public.kid()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Timestamp, keys::master::MasterKeySource};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn two_masters() -> (tempfile::TempDir, MasterKeys, MasterKeyId, MasterKeyId) {
        let place = tempfile::tempdir().unwrap();
        let source = MasterKeySource::Folder {
            path: place.path().to_owned(),
            group_may_read: false,
        };
        let (one, _) = source.add(&Entropy::new(), NOW).unwrap();
        let (two, _) = source.add(&Entropy::new(), NOW).unwrap();
        let masters = source.load().unwrap();
        (place, masters, one, two)
    }

    fn times() -> KeyTimes {
        KeyTimes {
            published_at: NOW,
            activates_at: NOW,
            withdrawn_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_sealed_key_opens_to_the_key_of_its_kid() {
        let (_place, masters, one, _) = two_masters();
        let entropy = Entropy::new();
        let record = generate(&masters, one, times(), &entropy).unwrap();
        let (_, public) = open(&masters, &record, &entropy).unwrap();
        assert_eq!(public.kid(), record.kid.as_str());
    }

    #[test]
    fn resealing_moves_a_key_to_another_master_key() {
        let (_place, masters, one, two) = two_masters();
        let entropy = Entropy::new();
        let mut record = generate(&masters, one, times(), &entropy).unwrap();
        record.sealed = reseal(&masters, &record, two, &entropy).unwrap();
        assert_eq!(record.sealed.master_id, two);
        assert!(open(&masters, &record, &entropy).is_ok());
    }

    #[test]
    fn the_secret_of_a_user_opens_for_that_user_only() {
        let (_place, masters, one, two) = two_masters();
        let user = |number| UserId::from_uuid(uuid::Uuid::from_u128(number));
        let sealed = seal_totp(&masters, one, user(1), b"secret", &Entropy::new()).unwrap();
        assert_eq!(&**open_totp(&masters, user(1), &sealed).unwrap(), b"secret");
        let moved = SealedKey {
            master_id: two,
            ..sealed.clone()
        };
        assert!(open_totp(&masters, user(1), &moved).is_err());
        assert!(open_totp(&masters, user(2), &sealed).is_err());
        for index in 0..sealed.ciphertext.len() {
            let mut flipped = sealed.clone();
            flipped.ciphertext[index] ^= 1;
            assert!(open_totp(&masters, user(1), &flipped).is_err(), "{index}");
        }
    }

    #[test]
    fn a_row_cannot_be_passed_off_as_another() {
        let (_place, masters, one, two) = two_masters();
        let entropy = Entropy::new();
        let record = generate(&masters, one, times(), &entropy).unwrap();
        let other = generate(&masters, one, times(), &entropy).unwrap();
        let renamed = KeyRecord {
            kid: other.kid,
            ..record.clone()
        };
        let mut moved = record.clone();
        moved.sealed.master_id = two;
        for altered in [renamed, moved] {
            assert!(matches!(
                open(&masters, &altered, &entropy),
                Err(SealingError::Altered(_))
            ));
        }
        for index in 0..record.sealed.ciphertext.len() {
            let mut flipped = record.clone();
            flipped.sealed.ciphertext[index] ^= 1;
            assert!(
                matches!(
                    open(&masters, &flipped, &entropy),
                    Err(SealingError::Altered(_))
                ),
                "{index}"
            );
            flipped.sealed.ciphertext.truncate(index);
            assert!(open(&masters, &flipped, &entropy).is_err());
        }
    }
}
