//! Signing in with a name and a password.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::password::{Busy, NewPasswordError, Password, Passwords};
use crate::{
    clock::AgreedClock,
    domain::{
        change::Origin,
        client::Client,
        id::ClientId,
        user::{PasswordHash, User, Username, UsernameKey},
    },
    metrics::Metrics,
    store::{self, Store, StoreError},
    throttle::{AddressPrefix, RetryAfter, Site, Throttle},
};

/// The network that a user signs in from, which failures are held against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The network.
    pub network: AddressPrefix,
    /// The client that said so; none where the service has seen it. What one client says counts
    /// nowhere else: it could name the network of somebody whom it means to lock out.
    pub told_by: Option<ClientId>,
}

impl Place {
    /// Where a user is on whose behalf this client asks, if anybody knows.
    ///
    /// A public client runs at its user's place, as the address shows, unless a trusted proxy has
    /// not told for whom it asks. A confidential one has proved that it is a back end: it has to say
    /// from which address (`told`) its user asks, or nothing is held against anybody.
    pub fn of(client: &Client, origin: &Origin, told: Option<IpAddr>) -> Option<Self> {
        if client.is_public() {
            return Self::of_browser(origin);
        }
        told.map(|address| Self {
            network: AddressPrefix::from(address),
            told_by: Some(client.client_id.clone()),
        })
    }

    /// Where the user of a browser is, if anybody knows.
    pub fn of_browser(origin: &Origin) -> Option<Self> {
        (!origin.is_proxy).then(|| Self {
            network: AddressPrefix::from(origin.address),
            told_by: None,
        })
    }

    /// The IPv6 site that the network belongs to, told by the same.
    fn site(&self) -> Option<(Site, Option<ClientId>)> {
        Some((Site::of(self.network)?, self.told_by.clone()))
    }
}

/// Who was tried from where.
pub type Tried = (Place, Option<UsernameKey>);

/// How often passwords may be wrong.
#[derive(Debug)]
pub struct Limits {
    /// Failures of one place about one user, named or not; about nobody, if what is presented
    /// cannot be a name.
    pub failures: Throttle<Tried>,
    /// Failures of one place about any user.
    pub failures_of_place: Throttle<Place>,
    /// Failures of all networks of one IPv6 site about any user.
    pub failures_of_site: Throttle<(Site, Option<ClientId>)>,
}

impl Limits {
    /// So many failures a minute of one place about one user, and of one place about any; 0 is no
    /// limit. A site has as many as four places: whoever has one has 65536 networks to ask from.
    pub fn per_minute(failures: u32, of_place: u32) -> Self {
        Self {
            failures: Throttle::per_minute(failures),
            failures_of_place: Throttle::per_minute(of_place),
            failures_of_site: Throttle::per_minute(of_place.saturating_mul(4)),
        }
    }

    /// Counts a try against every limit, or against none if one of them has been reached.
    fn take(&self, by: &Tried, now: Duration) -> Result<(), RetryAfter> {
        self.failures.take(by, now)?;
        let taken = self.failures_of_place.take(&by.0, now);
        taken.inspect_err(|_| self.failures.give_back(by, now, now))?;
        if let Some(site) = by.0.site() {
            let taken = self.failures_of_site.take(&site, now);
            taken.inspect_err(|_| {
                self.failures.give_back(by, now, now);
                self.failures_of_place.give_back(&by.0, now, now);
            })?;
        }
        Ok(())
    }

    /// Takes back a try that was counted at `taken`.
    fn give_back(&self, by: &Tried, taken: Duration, now: Duration) {
        self.failures.give_back(by, taken, now);
        self.failures_of_place.give_back(&by.0, taken, now);
        if let Some(site) = by.0.site() {
            self.failures_of_site.give_back(&site, taken, now);
        }
    }
}

/// Why somebody is not signed in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such user, or it is disabled, or it has no password or another one. Which of
    /// these it is nobody is to know.
    #[error("the user name or the password is wrong")]
    Credentials,
    /// Too many failures came from that place; nothing was looked at.
    #[error(transparent)]
    TooOften(#[from] RetryAfter),
    /// Too many passwords are being hashed: to be answered with 503.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The database failed, or did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refused {
    /// The word for metrics.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Credentials => "wrong",
            Self::TooOften(_) => "too_often",
            Self::Busy(_) => "busy",
            Self::Store(_) => "unavailable",
        }
    }
}

/// Signs users in with a name and a password.
///
/// # Security
/// Whatever is presented costs the same work and gets the same answer, so that nobody learns whether
/// there is a user of some name: for an unknown one, a disabled one and one without a password, a
/// hash that nobody knows the password of is verified.
///
/// Failures are counted by place and name, so that a stranger who guesses, or only means to lock
/// somebody out, locks nobody out elsewhere. What is presented counts as failed until it has proved
/// to be right: not even those who ask all at once get more tries than the limit.
pub struct SignIn {
    store: Arc<dyn Store>,
    clock: AgreedClock,
    passwords: Passwords,
    limits: Limits,
    metrics: Metrics,
    /// Verified where there is no hash.
    nobody: PasswordHash,
}

impl SignIn {
    /// Makes the hash that is verified where there is none, which takes as long as one verification.
    pub async fn new(
        store: Arc<dyn Store>,
        clock: AgreedClock,
        passwords: Passwords,
        limits: Limits,
        metrics: Metrics,
    ) -> Result<Self, NewPasswordError> {
        Ok(Self {
            store,
            clock,
            nobody: passwords.hash_of_nobody().await?,
            passwords,
            limits,
            metrics,
        })
    }

    /// The user of this name, if the password is the right one and the user enabled.
    ///
    /// The user is as it was before the password was verified. What is opened for it must carry its
    /// `session_epoch`: if the password was changed meanwhile, or the user disabled, that is another
    /// one by now, and what was opened is dead.
    ///
    /// Where nobody knows the user's place, nothing limits how often a password may be wrong.
    ///
    /// # Security
    /// `username` and `password` come from whoever sends the request, in whatever length.
    pub async fn verify(
        &self,
        username: &str,
        password: &str,
        place: Option<&Place>,
    ) -> Result<User, Refused> {
        let name = Username::parse(username).ok();
        let key = name.as_ref().map(|name| name.key().clone());
        let result = match place {
            Some(place) => self.within_limits((place.clone(), key), password).await,
            None => self.judge(key.as_ref(), password).await,
        };
        let outcome = result.as_ref().map_or_else(Refused::outcome, |_| "right");
        self.metrics.password_presented(outcome);
        result
    }

    async fn within_limits(&self, by: Tried, password: &str) -> Result<User, Refused> {
        let begun = self.clock.monotonic();
        self.limits.take(&by, begun)?;
        let result = self.judge(by.1.as_ref(), password).await;
        // Our own failures are nobody's.
        if !matches!(result, Err(Refused::Credentials)) {
            let now = self.clock.monotonic();
            self.limits.give_back(&by, begun, now);
        }
        result
    }

    async fn judge(&self, key: Option<&UsernameKey>, password: &str) -> Result<User, Refused> {
        // Too long for anybody's, whoever it is presented for.
        let password = Password::read(password).map_err(|_| Refused::Credentials)?;
        let user = match key {
            Some(key) => store::in_time(&self.clock, self.store.user_by_name(key)).await?,
            None => None,
        };
        let hash = user
            .as_ref()
            .filter(|user| !user.disabled)
            .and_then(|user| user.password_hash.clone());
        let may_match = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.clone());
        let matches = self.passwords.verify(password, hash).await?;
        match user {
            Some(user) if may_match && matches => Ok(user),
            user => {
                // For the operator. Not the name that was presented: people type passwords there.
                let reason = match &user {
                    None => "unknown_user",
                    Some(user) if user.disabled => "user_disabled",
                    Some(_) if !may_match => "no_password",
                    Some(_) => "wrong_password",
                };
                let user = user.map(|user| user.id.to_string());
                tracing::info!(reason, user, "a sign-in was refused");
                Err(Refused::Credentials)
            }
        }
    }
}
