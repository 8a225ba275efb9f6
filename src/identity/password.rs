//! Passwords: what may be one, and the hash that is slow on purpose.
//!
//! Hashes are made by a few workers at a time, for each takes 19 MiB and tens of milliseconds of a
//! core. Who finds no worker waits in line; where the line is full, one is told so at once.

use std::{collections::BTreeSet, fmt, sync::Arc, thread};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version, password_hash,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{runtime::Handle, sync::Semaphore};
use unicode_normalization::UnicodeNormalization as _;
use zxcvbn::{Score, zxcvbn};

use crate::{
    clock::AgreedClock,
    domain::user::{PasswordHash, Username},
    entropy::{Entropy, EntropyError},
    metrics::Metrics,
};

/// The longest password taken, in bytes of UTF-8.
pub const LONGEST: usize = 1024;

/// The least that `minimum_length` may be: NIST SP 800-63B-4 §3.1.1.2 asks for 8 characters where
/// there is a second factor, and for 15 where there is none.
pub const LEAST_MINIMUM_LENGTH: u32 = 8;

/// How many characters a password has that is drawn here, or more where the rules ask for more.
const GENERATED: usize = 24;

/// How many may wait for each worker: about a second's work.
const WAITING_PER_WORKER: usize = 32;

/// How much of a password is estimated, in characters. The effort grows with the square.
const ESTIMATED: usize = 48;

/// The parameters that OWASP recommends for Argon2id, and the least that NIST and ASVS let pass.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// A password in plain text, as somebody presents or chooses it.
///
/// In NFC, so that it is the same whatever keyboard it was written on (NIST SP 800-63B-4
/// §3.1.1.2). Neither printable nor clonable.
pub struct Password(SecretString);

/// The password is longer than [`LONGEST`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must have at most {LONGEST} bytes in UTF-8")]
pub struct TooLong;

impl Password {
    /// Takes a password, whatever its characters are.
    ///
    /// # Security
    /// The text comes from anybody who tries to sign in; more than [`LONGEST`] is not looked at.
    pub fn read(text: &str) -> Result<Self, TooLong> {
        if text.len() > LONGEST {
            return Err(TooLong);
        }
        let normal: String = text.nfc().collect();
        // Characters that take more room in their normal form are few, and in no keyboard's reach.
        if normal.len() > LONGEST {
            return Err(TooLong);
        }
        Ok(Self(normal.into()))
    }

    /// Draws a password of so many characters, 64 at most, of 6 random bits each.
    fn generate(entropy: &Entropy, length: usize) -> Result<Self, EntropyError> {
        let mut text = URL_SAFE_NO_PAD.encode(entropy.bytes::<48>()?);
        text.truncate(length);
        Ok(Self(text.into()))
    }

    /// The plain text, for its one showing.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Why a password is not taken for a new one. Says nothing of the password itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Weakness {
    /// It has fewer characters than the rules ask for.
    #[error("must have at least {0} characters; several words make a good one")]
    TooShort(usize),
    /// It is among those that are tried first.
    #[error(
        "is easy to guess: it repeats itself, follows a row of characters, or is close to what many people use"
    )]
    Guessable,
    /// It is made of the user's name, or of words about this service.
    #[error("is made of the name of the user or of this service; choose one that nobody would try")]
    Expected,
}

/// What a new password must be like: NIST SP 800-63B-4 §3.1.1.2.
///
/// A length, and that it is not one of those that are tried first; no rule about what characters it
/// is composed of, and no end of its time.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The fewest characters, as code points in NFC.
    pub minimum_length: usize,
    /// This issuer's identifier: words of it are expected in passwords.
    pub issuer: String,
}

impl Rules {
    /// Whether the password may become that of a user of this name.
    pub fn check(&self, password: &Password, username: &Username) -> Result<(), Weakness> {
        let text = password.expose();
        if text.chars().count() < self.minimum_length {
            return Err(Weakness::TooShort(self.minimum_length));
        }
        let beginning: String = text.chars().take(ESTIMATED).collect();
        // Below this score a hundred million guesses are enough.
        let is_weak = |words: &[&str]| zxcvbn(&beginning, words).score() < Score::Three;
        let words = self.expected_words(username);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // Once for a good one: an estimate can take longer than the hash.
        match is_weak(&words) {
            false => Ok(()),
            true if is_weak(&[]) => Err(Weakness::Guessable),
            true => Err(Weakness::Expected),
        }
    }

    /// Whole names and their parts.
    fn expected_words(&self, username: &Username) -> Vec<String> {
        let host = url::Url::parse(&self.issuer)
            .ok()
            .and_then(|issuer| issuer.host_str().map(str::to_owned))
            .unwrap_or_default();
        let names = [username.as_str(), username.key().as_str(), &host];
        let separators: [fn(char) -> bool; 4] = [
            |_| false,
            |character| character == '@',
            |character| character == '.',
            |character| !character.is_alphabetic(),
        ];
        let parts = names.iter().flat_map(|name| {
            let parts = separators
                .iter()
                .flat_map(|separator| name.split(separator));
            parts.filter(|part| part.chars().count() > 2)
        });
        parts
            .chain(["countersign"])
            .map(str::to_lowercase)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }
}

/// No hash could be made now: as many passwords wait as may, or the memory for it was not there.
/// Another attempt may succeed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being hashed")]
pub struct Busy;

/// Why a new password was not hashed.
#[derive(Debug, thiserror::Error)]
pub enum NewPasswordError {
    /// The rules forbid it.
    #[error(transparent)]
    Weak(#[from] Weakness),
    /// It cannot be hashed now.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// No salt could be drawn.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// How passwords are hashed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The fewest characters of a new password.
    pub minimum_length: usize,
    /// How many hashes are made at a time; 0 is one for each core.
    pub concurrent_hashes: usize,
}

/// Hashes passwords, a few at a time. Clones share the workers.
#[derive(Clone, Debug)]
pub struct Passwords {
    rules: Rules,
    argon2: Argon2Id,
    entropy: Entropy,
    /// Whose threads do the work: not those of whoever asks, which have others to answer.
    runtime: Handle,
    at_work: Arc<Semaphore>,
    /// Those at work and those in line.
    admitted: Arc<Semaphore>,
    workers: usize,
}

impl Passwords {
    /// Workers on the threads that `runtime` has for blocking work.
    pub fn new(
        settings: Settings,
        issuer: String,
        runtime: Handle,
        clock: AgreedClock,
        entropy: Entropy,
        metrics: Metrics,
    ) -> Self {
        let workers = match settings.concurrent_hashes {
            0 => thread::available_parallelism().map_or(1, usize::from),
            set => set,
        };
        Self {
            rules: Rules {
                minimum_length: settings.minimum_length,
                issuer,
            },
            argon2: Argon2Id { clock, metrics },
            entropy,
            runtime,
            at_work: Arc::new(Semaphore::new(workers)),
            admitted: Arc::new(Semaphore::new(workers * (1 + WAITING_PER_WORKER))),
            workers,
        }
    }

    /// Draws a password that the rules allow, for whoever lets us choose: of 144 random bits or more.
    pub fn generate(&self) -> Result<Password, EntropyError> {
        Password::generate(&self.entropy, GENERATED.max(self.rules.minimum_length))
    }

    /// The hash of a new password for a user of this name.
    pub async fn hash(
        &self,
        password: Password,
        username: Username,
    ) -> Result<PasswordHash, NewPasswordError> {
        let salt = self.entropy.bytes()?;
        let (rules, argon2) = (self.rules.clone(), self.argon2.clone());
        self.work(move || {
            rules.check(&password, &username)?;
            Ok(argon2.hash(&password, salt)?)
        })
        .await?
    }

    /// The hash of a password that nobody knows, to hold others against where there is no hash.
    pub async fn hash_of_nobody(&self) -> Result<PasswordHash, NewPasswordError> {
        let password = self.generate()?;
        let salt = self.entropy.bytes()?;
        let argon2 = self.argon2.clone();
        Ok(self.work(move || argon2.hash(&password, salt)).await??)
    }

    /// Whether a password is the one of this hash.
    pub async fn verify(&self, password: Password, hash: PasswordHash) -> Result<bool, Busy> {
        let argon2 = self.argon2.clone();
        self.work(move || argon2.verify(&password, &hash)).await?
    }

    /// How many wait for a worker.
    pub fn waiting(&self) -> usize {
        let idle = self.at_work.available_permits();
        let admitted = self.workers * (1 + WAITING_PER_WORKER) - self.admitted.available_permits();
        admitted.saturating_sub(self.workers - idle)
    }

    /// Waits for a worker and has it work. What has begun is finished, and counts as work until
    /// then, also when nobody waits for it any more.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let admission = Arc::clone(&self.admitted).try_acquire_owned();
        let admission = admission.map_err(|_| Busy)?;
        let worker = Arc::clone(&self.at_work).acquire_owned().await;
        let worker = worker.map_err(|_| Busy)?;
        let working = self.runtime.spawn_blocking(move || {
            let _held = (worker, admission);
            work()
        });
        working.await.map_err(|_| Busy)
    }
}

/// The password hash, and the measure of its work.
#[derive(Clone, Debug)]
struct Argon2Id {
    clock: AgreedClock,
    metrics: Metrics,
}

impl Argon2Id {
    fn hash(&self, password: &Password, salt: [u8; 16]) -> Result<PasswordHash, Busy> {
        let hashed = self.measured(|| {
            let params = Params::new(MEMORY_KIB, PASSES, LANES, None)?;
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon2.hash_password_with_salt(password.expose().as_bytes(), &salt)
        });
        let hashed = hashed.map_err(busy)?;
        Ok(PasswordHash::from_phc(hashed.to_string()))
    }

    /// By the parameters that stand in the hash. Compares in constant time.
    fn verify(&self, password: &Password, hash: &PasswordHash) -> Result<bool, Busy> {
        let verified = self.measured(|| {
            Argon2::default().verify_password(password.expose().as_bytes(), hash.phc())
        });
        match verified {
            Ok(()) => Ok(true),
            Err(password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(busy(error)),
        }
    }

    fn measured<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = self.clock.monotonic();
        let done = work();
        let duration = self.clock.monotonic().saturating_sub(begun);
        self.metrics.password_hashed(duration);
        done
    }
}

/// Neither of our parameters nor of a stored hash; so there was no memory, or the row is damaged.
fn busy(error: password_hash::Error) -> Busy {
    tracing::error!(%error, "a password could not be hashed");
    Busy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Password {
        Password::read(text).unwrap()
    }

    fn check(password: &str) -> Result<(), Weakness> {
        let rules = Rules {
            minimum_length: 15,
            issuer: "https://auth.acme-corporation.example".to_owned(),
        };
        rules.check(
            &read(password),
            &Username::parse("Ada.Lovelace@mail.example").unwrap(),
        )
    }

    #[test]
    fn a_password_needs_length_and_nothing_else() {
        for good in [
            "correct horse battery staple",
            "the dog ran home",
            "xk cd vq zj wp fb",
            "ὦ ξεῖν᾽ ἀγγέλλειν",
            "床前明月光疑是地上霜舉頭望明月",
            "🦀🐙🦑🦐🐚🐌🐛🐜🐝🐞🦗🕷🦂🦟🦠",
            "  ends in spaces ",
            &"long enough to need some of the room there is: ".repeat(8),
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (short, length) in [("", 0), ("14 characters!", 14), ("ééééééééé", 9)] {
            assert_eq!(short.chars().count(), length);
            assert_eq!(check(short), Err(Weakness::TooShort(15)), "{short}");
        }
        // Two code points for a letter become one.
        let decomposed = "e\u{301}\u{2003}".repeat(7);
        assert_eq!(decomposed.chars().count(), 21);
        assert_eq!(check(&decomposed), Err(Weakness::TooShort(15)));
    }

    #[test]
    fn a_password_that_anybody_would_try_is_refused() {
        for (weak, problem) in [
            ("passwordpassword", Weakness::Guessable),
            ("aaaaaaaaaaaaaaaa", Weakness::Guessable),
            ("abcabcabcabcabcabc", Weakness::Guessable),
            ("qwertyuiopasdfgh", Weakness::Guessable),
            ("1234567890123456", Weakness::Guessable),
            ("                  ", Weakness::Guessable),
            ("Password12345678", Weakness::Guessable),
            ("michaelmichelle", Weakness::Guessable),
            ("ada.lovelace@mail.example", Weakness::Expected),
            ("Ada.Lovelace1815", Weakness::Expected),
            ("acme-corporation", Weakness::Expected),
            ("countersign2026", Weakness::Expected),
        ] {
            assert_eq!(check(weak), Err(problem), "{weak}");
        }
    }

    #[test]
    fn a_password_is_the_same_in_every_unicode_form() {
        assert_eq!(read("e\u{301}").expose(), "é");
        // Compatible is not the same: nothing is taken from a password.
        assert_eq!(read("ﬁ ").expose(), "ﬁ ");
    }

    #[test]
    fn a_password_is_bounded_and_never_shows() {
        assert!(Password::read(&"x".repeat(LONGEST)).is_ok());
        assert_eq!(
            Password::read(&"x".repeat(LONGEST + 1)).unwrap_err(),
            TooLong
        );
        // Three times as long in its normal form.
        assert_eq!(
            Password::read(&"\u{1d160}".repeat(200)).unwrap_err(),
            TooLong
        );
        assert_eq!(format!("{:?}", read("secret")), "Password(..)");
    }

    #[test]
    fn a_generated_password_obeys_the_rules() {
        let entropy = Entropy::new();
        for _ in 0..20 {
            let password = Password::generate(&entropy, GENERATED).unwrap();
            assert_eq!(check(password.expose()), Ok(()));
            let longest = Password::generate(&entropy, 64).unwrap();
            assert_eq!(longest.expose().len(), 64);
        }
    }
}
