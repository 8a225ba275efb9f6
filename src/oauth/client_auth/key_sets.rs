//! The keys that clients publish at their `jwks_uri` (RFC 7591 §2).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use countersign_verifier::{
    KeySet,
    json::{self, JsonError, MemberError},
    jwk::KeySetError,
};
use url::Url;

use crate::{
    clock::AgreedClock,
    domain::client::MOST_KEYS,
    metrics::Metrics,
    outbound::{FetchError, Outbound},
    registry::Registry,
};

/// For how long a key set counts as fresh whose sender says nothing about it.
const LIFE: Duration = Duration::from_mins(5);
/// Whatever its sender says, for no shorter …
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
/// … and no longer than this.
const LONGEST_LIFE: Duration = Duration::from_hours(1);

/// For how much longer it is used while it cannot be fetched again.
const STALE: Duration = Duration::from_hours(1);

/// How soon a URI is not asked again, whatever the last answer was: anybody can send an assertion
/// that names a key which nobody knows.
const COOLDOWN: Duration = Duration::from_secs(10);

/// How many URIs are remembered.
const MOST_URIS: usize = 4096;

/// Fetches the key sets of clients and remembers them.
///
/// Each URI is on its own: one that is slow or dead makes nobody else wait.
pub struct KeySets {
    outbound: Outbound,
    clock: AgreedClock,
    metrics: Metrics,
    sites: Mutex<HashMap<String, Arc<Site>>>,
}

/// One URI.
#[derive(Default)]
struct Site {
    /// Held by whoever asks it; the others wait for what comes back.
    asking: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
}

/// What is known of one URI; times are of the monotonic clock.
#[derive(Clone, Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    fresh_until: Duration,
    /// When the last answer came, or failed to.
    asked_at: Option<Duration>,
}

impl Known {
    /// Whether asking may tell more about this key, and is not too soon.
    fn should_ask(&self, kid: Option<&str>, now: Duration) -> bool {
        let rested = self
            .asked_at
            .is_none_or(|asked_at| now.saturating_sub(asked_at) >= COOLDOWN);
        let answers = self.keys.as_ref().is_some_and(|keys| {
            now < self.fresh_until && kid.is_none_or(|kid| keys.find(kid).is_some())
        });
        rested && !answers
    }

    fn usable(&self, now: Duration) -> Option<Arc<KeySet>> {
        self.keys.clone().filter(|_| now < self.fresh_until + STALE)
    }
}

/// Why a key set was not taken over.
#[derive(Debug, thiserror::Error)]
enum KeySetProblem {
    #[error("the URI is no URL")]
    Uri,
    #[error("it was not fetched")]
    Fetch(#[from] FetchError),
    #[error("it is no JSON object")]
    Json(#[from] JsonError),
    #[error("it has no array of keys")]
    Keys(#[from] MemberError),
    #[error("it is no key set")]
    KeySet(#[from] KeySetError),
    #[error("it has more than {MOST_KEYS} keys")]
    TooMany,
    #[error("it shows a private or secret key")]
    Private,
}

impl KeySetProblem {
    /// For the metric.
    const fn word(&self) -> &'static str {
        match self {
            Self::Fetch(FetchError::Forbidden | FetchError::Url) | Self::Uri => "forbidden",
            Self::Fetch(FetchError::Status(_)) => "status",
            Self::Fetch(FetchError::TooSlow) => "too_slow",
            Self::Fetch(FetchError::Unreachable(_)) => "unreachable",
            Self::Fetch(FetchError::TooLong)
            | Self::Json(_)
            | Self::Keys(_)
            | Self::KeySet(_)
            | Self::Private
            | Self::TooMany => "unusable",
        }
    }
}

impl KeySets {
    /// Remembers nothing yet.
    pub fn new(outbound: Outbound, clock: AgreedClock, metrics: Metrics) -> Self {
        Self {
            outbound,
            clock,
            metrics,
            sites: Mutex::default(),
        }
    }

    /// The key set at `uri`, for a signature by the key `kid`; `None` when it cannot be had.
    ///
    /// It is fetched when it is not fresh, or does not have that key. `registry` tells which other
    /// URIs are still worth remembering.
    pub async fn get(
        &self,
        uri: &str,
        kid: Option<&str>,
        registry: &Registry,
    ) -> Option<Arc<KeySet>> {
        let site = self.site(uri, registry);
        if site.known().should_ask(kid, self.clock.monotonic()) {
            let asking = Arc::clone(&site.asking).lock_owned().await;
            // Whoever was asking meanwhile may have learnt it.
            if site.known().should_ask(kid, self.clock.monotonic()) {
                let (uri, site) = (uri.to_owned(), Arc::clone(&site));
                let (outbound, clock) = (self.outbound.clone(), self.clock.clone());
                let metrics = self.metrics.clone();
                // In a task of its own: whoever caused it may hang up, and others wait for it.
                let fetching = tokio::spawn(async move {
                    let problem = site.ask(&uri, &outbound, &clock).await;
                    metrics.jwks_fetched(problem.map_or("fetched", |problem| problem.word()));
                    drop(asking);
                });
                // It ends in no other way but with the runtime.
                let _ = fetching.await;
            }
        }
        site.known().usable(self.clock.monotonic())
    }

    /// The key set at `uri` as it is remembered, and whether [`Self::get`] would ask nobody before
    /// it gave the same for the key `kid`.
    pub fn remembered(&self, uri: &str, kid: Option<&str>) -> Option<(Arc<KeySet>, bool)> {
        let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sites.get(uri)?.known().clone();
        drop(sites);
        let now = self.clock.monotonic();
        let is_current = !known.should_ask(kid, now);
        known.usable(now).map(|keys| (keys, is_current))
    }

    fn site(&self, uri: &str, registry: &Registry) -> Arc<Site> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = sites.get(uri) {
            return Arc::clone(site);
        }
        let named: HashSet<&str> = registry
            .clients()
            .filter_map(|client| client.jwks_uri.as_deref())
            .collect();
        sites.retain(|uri, _| named.contains(uri.as_str()));
        if sites.len() >= MOST_URIS {
            let oldest = sites.iter().min_by_key(|(_, site)| site.known().asked_at);
            let oldest = oldest.map(|(uri, _)| uri.clone());
            oldest.and_then(|uri| sites.remove(&uri));
        }
        Arc::clone(sites.entry(uri.to_owned()).or_default())
    }
}

impl Site {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything is noted at the end, so that whoever comes meanwhile waits for it.
    async fn ask(
        &self,
        uri: &str,
        outbound: &Outbound,
        clock: &AgreedClock,
    ) -> Option<KeySetProblem> {
        let fetched = fetch(uri, outbound).await;
        let now = clock.monotonic();
        let mut known = self.known();
        known.asked_at = Some(now);
        match fetched {
            Ok((keys, life)) => {
                known.keys = Some(Arc::new(keys));
                known.fresh_until = now + life;
                None
            }
            Err(problem) => {
                let cause: &dyn std::error::Error = &problem;
                tracing::warn!(
                    jwks_uri = uri,
                    cause,
                    "the key set of a client cannot be used"
                );
                Some(problem)
            }
        }
    }
}

async fn fetch(uri: &str, outbound: &Outbound) -> Result<(KeySet, Duration), KeySetProblem> {
    let url = Url::parse(uri).map_err(|_| KeySetProblem::Uri)?;
    let document = outbound.fetch(&url).await?;
    let keys = read(&document.body)?;
    let life = document.max_age.unwrap_or(LIFE);
    Ok((keys, life.clamp(SHORTEST_LIFE, LONGEST_LIFE)))
}

/// Keys of other kinds may be among them, for others (RFC 7517 §5). Whoever publishes a private
/// key has none left to prove anything with.
fn read(document: &[u8]) -> Result<KeySet, KeySetProblem> {
    let object = json::parse_object(document)?;
    let keys = object.array("keys")?.unwrap_or_default();
    if keys.len() > MOST_KEYS {
        return Err(KeySetProblem::TooMany);
    }
    let is_private =
        |key: &serde_json::Value| ["d", "k"].iter().any(|name| key.get(name).is_some());
    if keys.iter().any(is_private) {
        return Err(KeySetProblem::Private);
    }
    Ok(KeySet::parse(document)?)
}
