//! Randomness: owns the one [`SystemRandom`] of the process. Imports nothing of this crate but
//! [`Timestamp`].

use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use crate::clock::Timestamp;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random number generator failed")]
pub struct EntropyError;

/// The operating system's random number generator. Clones share it.
#[derive(Clone, Debug)]
pub struct Entropy {
    random: SystemRandom,
}

impl Entropy {
    /// Opens the generator.
    #[expect(clippy::disallowed_methods, reason = "the one place that opens it")]
    pub fn new() -> Self {
        Self {
            random: SystemRandom::new(),
        }
    }

    /// `N` unpredictable bytes.
    pub fn bytes<const N: usize>(&self) -> Result<[u8; N], EntropyError> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).map_err(|_| EntropyError)?;
        Ok(bytes)
    }

    /// A version 7 UUID: sorts by `now`, unpredictable in its other 74 bits.
    pub fn uuid_v7(&self, now: Timestamp) -> Result<Uuid, EntropyError> {
        let millis = u64::try_from(now.millis()).unwrap_or(0);
        let random = self.bytes()?;
        Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// The generator in the shape that ring's own functions ask for.
    pub fn secure_random(&self) -> &SystemRandom {
        &self.random
    }
}

impl Default for Entropy {
    fn default() -> Self {
        Self::new()
    }
}
