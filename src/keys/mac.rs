//! Refresh-MAC keys: they make and verify the tags of refresh tokens. The nodes alone know them.
//!
//! A token that nobody of ours has minted is found out here, before anything is asked of the
//! database.

use countersign_verifier::base64url;
use ring::{digest, hmac};

use super::{
    browser_state::StateKey,
    lifecycle::{self, KeyState, Policy},
    master::MasterKeys,
    ring::Ring,
    sealing::{self, SealingError},
};
use crate::{
    clock::Timestamp,
    domain::{
        id::{FamilyId, Kid},
        key::{KeySchedule, KeyTimes},
        refresh_token::{Malformed, RefreshToken, Tag},
    },
};

/// What stands before a key where its kid is made.
const KID_DOMAIN: &[u8] = b"countersign refresh-MAC key\0";

/// Why a refresh token is refused before anybody has looked for its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// No refresh token of ours.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Made with a key that is not in this ring: it may be newer than the ring.
    #[error("the refresh token names a MAC key that is not known here")]
    UnknownKey,
    /// Made with a key that was revoked, or by now withdrawn.
    #[error("the MAC key of the refresh token counts no more")]
    KeyGone,
    /// Its tag is not the one that the key makes.
    #[error("the tag of the refresh token is wrong")]
    Forged,
}

/// A key that makes the tags of refresh tokens.
pub struct MacKey {
    /// Its name in the admin interfaces.
    pub kid: Kid,
    /// Its name in refresh tokens.
    pub version: u32,
    key: hmac::Key,
    state: StateKey,
}

impl MacKey {
    /// The refresh token of a family at this counter: always the same one.
    pub fn mint(&self, family: FamilyId, counter: u64) -> String {
        let token = RefreshToken {
            mac_version: self.version,
            family,
            counter,
        };
        token.encode(&self.tag(&token))
    }

    /// What seals the state of browsers.
    pub(super) fn state(&self) -> &StateKey {
        &self.state
    }

    fn tag(&self, token: &RefreshToken) -> Tag {
        Tag::of(&hmac::sign(&self.key, &token.authenticated()))
    }
}

/// The refresh-MAC keys of one revision of their schedule.
pub struct MacRing(Ring<MacKey>);

impl MacRing {
    /// Opens every key of the schedule; what is withdrawn and does not open is left out.
    pub fn open(
        schedule: &KeySchedule,
        masters: &MasterKeys,
        now: Timestamp,
    ) -> Result<Self, SealingError> {
        let ring = Ring::open(schedule, now, |record| {
            let (version, secret) = sealing::open_mac(masters, record)?;
            Ok(MacKey {
                kid: record.kid.clone(),
                version,
                key: hmac::Key::new(hmac::HMAC_SHA256, &*secret),
                state: StateKey::derive(&secret).ok_or(SealingError::Generation)?,
            })
        })?;
        Ok(Self(ring))
    }

    /// The key that makes new tokens at `now`.
    pub fn active(&self, now: Timestamp) -> Option<&MacKey> {
        self.0.active(now)
    }

    /// The key of this version, if what it has made counts at `now`.
    ///
    /// # Errors
    /// [`MacError::UnknownKey`] and [`MacError::KeyGone`].
    pub fn find(&self, version: u32, now: Timestamp) -> Result<&MacKey, MacError> {
        let mut keys = self.0.all();
        let (key, times) = keys
            .find(|(key, _)| key.version == version)
            .ok_or(MacError::UnknownKey)?;
        if lifecycle::is_published(times, now) {
            Ok(key)
        } else {
            Err(MacError::KeyGone)
        }
    }

    /// What a refresh token says, if one of these keys has made its tag. Compares in constant time.
    ///
    /// # Security
    /// Whoever sends the request chooses `text`. Without a key nobody makes one that is taken; it
    /// proves nothing about the family, which may have ended or never been.
    pub fn verify(&self, text: &str, now: Timestamp) -> Result<RefreshToken, MacError> {
        let (token, tag) = RefreshToken::parse(text)?;
        let key = self.find(token.mac_version, now)?;
        if bool::from(key.tag(&token).matches(&tag)) {
            Ok(token)
        } else {
            Err(MacError::Forged)
        }
    }

    /// Whether it is time to make a key.
    pub fn lacks_key(&self, policy: &Policy, now: Timestamp) -> bool {
        self.0.lacks_key(policy, now)
    }

    /// Every key with its state at `now` and its times.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = (&MacKey, KeyState, KeyTimes)> {
        self.0.list(now)
    }
}

/// The kid of a secret: shows nothing of it, and no other secret has it.
pub(super) fn kid_of(secret: &[u8; 32]) -> Option<Kid> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(KID_DOMAIN);
    context.update(secret);
    Kid::parse(&base64url::encode(context.finish().as_ref())).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::key::{KeyRecord, KeyUse},
        entropy::Entropy,
        keys::{lifecycle::LONGEST_FAMILY_LIFE, master::MasterKeySource},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_hours(1);

    struct Bench {
        _folder: tempfile::TempDir,
        masters: MasterKeys,
        schedule: KeySchedule,
    }

    /// Key 1, and key 2 that takes over an hour later.
    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let source = MasterKeySource::Folder {
            path: folder.path().to_owned(),
            group_may_read: false,
        };
        let entropy = Entropy::new();
        let (master, _) = source.add(&entropy, NOW).unwrap();
        let masters = source.load().unwrap();
        let key = |version, activates_at, withdrawn_at| {
            let times = KeyTimes {
                published_at: NOW,
                activates_at,
                withdrawn_at,
                revoked_at: None,
            };
            sealing::generate_mac(&masters, master, version, times, &entropy).unwrap()
        };
        let switch = NOW.plus(HOUR);
        let keys = vec![
            key(1, NOW, Some(switch.plus(LONGEST_FAMILY_LIFE))),
            key(2, switch, None),
        ];
        let schedule = KeySchedule {
            key_use: KeyUse::RefreshMac,
            revision: 1,
            primary_master: Some(master),
            keys,
        };
        Bench {
            _folder: folder,
            masters,
            schedule,
        }
    }

    impl Bench {
        fn ring(&self) -> MacRing {
            MacRing::open(&self.schedule, &self.masters, NOW).unwrap()
        }

        fn key(&mut self, index: usize) -> &mut KeyRecord {
            &mut self.schedule.keys[index]
        }
    }

    fn family() -> FamilyId {
        FamilyId::from_uuid(Uuid::from_u128(7))
    }

    #[test]
    fn what_one_ring_mints_another_verifies() {
        let bench = bench();
        let text = bench.ring().active(NOW).unwrap().mint(family(), 5);
        let expected = RefreshToken {
            mac_version: 1,
            family: family(),
            counter: 5,
        };
        assert_eq!(bench.ring().verify(&text, NOW), Ok(expected));
        // A retry gets the very same token.
        let again = bench.ring().find(1, NOW).unwrap().mint(family(), 5);
        assert_eq!(again, text);
    }

    #[test]
    fn a_token_outlives_the_switch_to_another_key_but_not_its_own() {
        let ring = bench().ring();
        let text = ring.active(NOW).unwrap().mint(family(), 0);
        let switch = NOW.plus(HOUR);
        assert_eq!(ring.active(switch).unwrap().version, 2);
        let end = switch.plus(LONGEST_FAMILY_LIFE);
        assert!(
            ring.verify(&text, end.minus(Duration::from_millis(1)))
                .is_ok()
        );
        assert_eq!(ring.verify(&text, end), Err(MacError::KeyGone));
    }

    #[test]
    fn a_revoked_key_mints_and_verifies_nothing() {
        let mut bench = bench();
        let text = bench.ring().active(NOW).unwrap().mint(family(), 0);
        bench.key(0).times.revoked_at = Some(NOW);
        let ring = bench.ring();
        assert_eq!(ring.verify(&text, NOW), Err(MacError::KeyGone));
        assert_eq!(ring.active(NOW).unwrap().version, 2);
    }

    #[test]
    fn a_key_that_is_not_here_may_be_newer_than_the_ring() {
        let mut bench = bench();
        let text = bench.ring().find(2, NOW).unwrap().mint(family(), 0);
        bench.schedule.keys.truncate(1);
        assert_eq!(bench.ring().verify(&text, NOW), Err(MacError::UnknownKey));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let ring = bench().ring();
        let text = ring.active(NOW).unwrap().mint(family(), 9);
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                if let Ok(flipped) = String::from_utf8(bytes) {
                    assert!(ring.verify(&flipped, NOW).is_err(), "{index} {bit}");
                }
            }
        }
    }

    #[test]
    fn what_one_ring_seals_another_opens_for_the_same_browser() {
        let (bench, entropy) = (bench(), Entropy::new());
        let seal = || {
            bench
                .ring()
                .seal(b"state", b"browser", &entropy, NOW)
                .unwrap()
        };
        let text = seal();
        let open = |text: &str, bound_to: &[u8]| bench.ring().unseal(text, bound_to, NOW);
        assert_eq!(open(&text, b"browser").unwrap(), b"state");
        assert_ne!(seal(), text);
        assert_eq!(open(&text, b"other"), Err(MacError::Forged));
        assert_eq!(open(&text, b""), Err(MacError::Forged));
        // After the switch to another key, too; but not by that of another database.
        let later = bench.ring().unseal(&text, b"browser", NOW.plus(HOUR));
        assert_eq!(later.unwrap(), b"state");
        let elsewhere = self::bench().ring().unseal(&text, b"browser", NOW);
        assert_eq!(elsewhere, Err(MacError::Forged));
        for bad in [
            "",
            "x",
            "AQ",
            &text[..20],
            &text[..text.len() - 1],
            &format!("{text}AAAA"),
        ] {
            assert!(open(bad, b"browser").is_err(), "{bad}");
        }
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(flipped) = String::from_utf8(bytes) {
                assert!(open(&flipped, b"browser").is_err(), "{index}");
            }
        }
        let long = "A".repeat(100_000);
        assert!(matches!(
            open(&long, b"browser"),
            Err(MacError::Malformed(_))
        ));
    }

    #[test]
    fn the_key_of_another_database_does_not_verify() {
        let text = bench().ring().active(NOW).unwrap().mint(family(), 0);
        assert_eq!(bench().ring().verify(&text, NOW), Err(MacError::Forged));
    }

    #[test]
    fn a_row_cannot_be_passed_off_as_another() {
        let mut bench = bench();
        let (one, two) = (bench.key(0).clone(), bench.key(1).clone());
        let altered = [
            KeyRecord {
                version: two.version,
                ..one.clone()
            },
            KeyRecord {
                version: None,
                ..one.clone()
            },
            KeyRecord {
                kid: two.kid,
                ..one.clone()
            },
            KeyRecord {
                sealed: two.sealed,
                ..one.clone()
            },
            KeyRecord {
                key_use: KeyUse::Signing,
                ..one.clone()
            },
        ];
        for record in altered {
            *bench.key(0) = record;
            let opened = MacRing::open(&bench.schedule, &bench.masters, NOW);
            assert!(matches!(opened, Err(SealingError::Altered(_))));
        }
        // Once it counts no more it is left out.
        bench.key(0).times.withdrawn_at = Some(NOW);
        let ring = bench.ring();
        assert_eq!(ring.find(1, NOW).err(), Some(MacError::UnknownKey));
        assert_eq!(ring.list(NOW).count(), 1);
    }

    #[test]
    fn a_kid_shows_nothing_of_its_key_and_names_no_other() {
        let kid = kid_of(&[1; 32]).unwrap();
        assert_eq!(kid.as_str(), "Hjboz_M2DHdvzrxw46bQVramQSORwfw3jvw87tzzDZ0");
        assert_ne!(kid, kid_of(&[2; 32]).unwrap());
        let bare = digest::digest(&digest::SHA256, &[1; 32]);
        assert_ne!(kid.as_str(), base64url::encode(bare.as_ref()));
    }
}
