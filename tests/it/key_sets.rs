//! The key sets that clients publish: when they are asked for, and for how long remembered.

use std::{sync::Arc, time::Duration};

use countersign::{
    clock::{AgreedClock, Clock as _, ManualClock, Timestamp},
    domain::client::MOST_KEYS,
    metrics::Metrics,
    oauth::client_auth::KeySets,
    outbound::{Outbound, Resolver, Settings, SystemResolver},
    registry::Registry,
};
use countersign_verifier::KeySet;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    jwt::{SigningKey, jwks},
    site::Site,
    soon,
};

/// Longer than a URI is left alone after an answer.
const COOLDOWN: Duration = Duration::from_secs(11);

struct Setup {
    clock: ManualClock,
    sets: Arc<KeySets>,
    registry: Arc<Registry>,
}

impl Setup {
    fn new() -> Self {
        let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
        let agreed = AgreedClock::new(Arc::new(clock.clone()));
        let settings = Settings {
            allowed_networks: vec!["127.0.0.1/32".parse().unwrap()],
            ca_certificates: None,
            timeout: Duration::from_mins(1),
        };
        let span = Duration::from_hours(1);
        let metrics = Metrics::new(clock.now(), span, span);
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        let outbound = Outbound::new(&settings, &resolver, agreed.clone()).unwrap();
        Self {
            clock,
            sets: Arc::new(KeySets::new(outbound, agreed, metrics)),
            registry: Arc::default(),
        }
    }

    async fn get(&self, site: &Site, kid: &str) -> Option<Arc<KeySet>> {
        let uri = site.url("/jwks.json");
        soon(self.sets.get(&uri, Some(kid), &self.registry)).await
    }

    /// Whether a key is found.
    async fn finds(&self, site: &Site, kid: &str) -> bool {
        let set = self.get(site, kid).await;
        set.is_some_and(|set| set.find(kid).is_some())
    }
}

fn publish(site: &Site, headers: &str, keys: &[&SigningKey]) {
    site.answer(headers, &jwks(keys).to_string());
}

#[tokio::test]
async fn a_key_set_is_remembered_for_as_long_as_its_sender_says_within_bounds() {
    let key = SigningKey::new("key");
    for (headers, seconds) in [
        ("", 300),
        ("Cache-Control: max-age=600\r\n", 600),
        ("Cache-Control: max-age=1\r\n", 60),
        ("Cache-Control: no-store\r\n", 60),
        ("Cache-Control: max-age=86400\r\n", 3600),
    ] {
        let (setup, site) = (Setup::new(), Site::plain());
        publish(&site, headers, &[&key]);
        assert!(setup.finds(&site, "key").await);
        setup.clock.advance(Duration::from_secs(seconds - 1));
        assert!(setup.finds(&site, "key").await);
        assert_eq!(site.connections(), 1, "{headers}");
        setup.clock.advance(Duration::from_secs(1));
        assert!(setup.finds(&site, "key").await);
        assert_eq!(site.connections(), 2, "{headers}");
    }
}

#[tokio::test]
async fn many_who_need_one_key_set_share_one_request() {
    let (setup, site) = (Setup::new(), Site::plain());
    publish(&site, "", &[&SigningKey::new("key")]);
    let found = join_all((0..64).map(|_| setup.finds(&site, "key"))).await;
    assert!(found.into_iter().all(|found| found));
    assert_eq!(site.connections(), 1);
}

/// Anybody can send assertions that name keys which nobody has.
#[tokio::test]
async fn unknown_keys_make_for_one_request_in_ten_seconds() {
    let (setup, site) = (Setup::new(), Site::plain());
    publish(&site, "", &[&SigningKey::new("key")]);
    for round in 1..=3 {
        let unknown: Vec<String> = (0..32).map(|number| format!("unknown-{number}")).collect();
        let found = join_all(unknown.iter().map(|kid| setup.finds(&site, kid))).await;
        assert!(found.into_iter().all(|found| !found));
        assert!(setup.finds(&site, "key").await);
        assert_eq!(site.connections(), round);
        setup.clock.advance(COOLDOWN);
    }
}

#[tokio::test]
async fn a_site_that_fails_is_asked_again_after_ten_seconds_and_no_earlier() {
    let (setup, site) = (Setup::new(), Site::plain());
    site.fail(503);
    for _ in 0..5 {
        assert!(setup.get(&site, "key").await.is_none());
    }
    assert_eq!(site.connections(), 1);
    setup.clock.advance(COOLDOWN);
    publish(&site, "", &[&SigningKey::new("key")]);
    assert!(setup.finds(&site, "key").await);
    assert_eq!(site.connections(), 2);
}

#[tokio::test]
async fn keys_are_used_for_one_more_hour_while_their_site_fails() {
    let (setup, site) = (Setup::new(), Site::plain());
    publish(&site, "", &[&SigningKey::new("key")]);
    assert!(setup.finds(&site, "key").await);
    site.fail(500);
    setup.clock.advance(Duration::from_secs(300 + 3599));
    assert!(setup.finds(&site, "key").await);
    setup.clock.advance(COOLDOWN);
    assert!(setup.get(&site, "key").await.is_none());
    publish(&site, "", &[&SigningKey::new("key")]);
    setup.clock.advance(COOLDOWN);
    assert!(setup.finds(&site, "key").await);
}

/// A key that its owner has withdrawn ends with the life of the set that had it.
#[tokio::test]
async fn a_withdrawn_key_is_forgotten_with_the_next_answer() {
    let (setup, site) = (Setup::new(), Site::plain());
    let (old, new) = (SigningKey::new("old"), SigningKey::new("new"));
    publish(&site, "", &[&old]);
    assert!(setup.finds(&site, "old").await);
    publish(&site, "", &[&new]);
    setup.clock.advance(COOLDOWN);
    assert!(setup.finds(&site, "new").await);
    assert!(!setup.finds(&site, "old").await);
}

#[tokio::test]
async fn a_site_that_does_not_answer_makes_no_other_slow() {
    let (setup, dead, alive) = (Setup::new(), Site::plain(), Site::plain());
    dead.stall_after("");
    publish(&alive, "", &[&SigningKey::new("key")]);
    let waiting = tokio::spawn({
        let (sets, registry) = (Arc::clone(&setup.sets), Arc::clone(&setup.registry));
        let uri = dead.url("/jwks.json");
        async move { sets.get(&uri, None, &registry).await.is_none() }
    });
    soon(async {
        while dead.connections() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(setup.finds(&alive, "key").await);
    assert!(!waiting.is_finished());
    setup.clock.advance(Duration::from_mins(1));
    assert!(soon(waiting).await.unwrap());
}

/// Else a stranger who hangs up could keep a client's keys from ever being fetched.
#[tokio::test]
async fn whoever_hangs_up_does_not_end_a_request_that_others_wait_for() {
    let (setup, site) = (Setup::new(), Site::plain());
    site.stall_after("");
    let hasty = tokio::spawn({
        let (sets, registry) = (Arc::clone(&setup.sets), Arc::clone(&setup.registry));
        let uri = site.url("/jwks.json");
        async move { sets.get(&uri, None, &registry).await }
    });
    soon(async {
        while site.connections() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    hasty.abort();
    assert!(soon(hasty).await.is_err());
    let mut patient = std::pin::pin!(setup.get(&site, "key"));
    let none = tokio::select! {
        biased;
        set = &mut patient => set,
        () = tokio::task::yield_now() => None,
    };
    assert!(none.is_none());
    // The one request under way is still the only one, and its end is everybody's.
    setup.clock.advance(Duration::from_mins(1));
    assert!(patient.await.is_none());
    assert_eq!(site.connections(), 1);
}

#[tokio::test]
async fn what_is_no_public_key_set_is_not_used() {
    let key = SigningKey::new("key");
    let mut private = key.jwk();
    private["d"] = "AAAA".into();
    let many = |count: usize| -> Vec<Value> {
        let names = (0..count).map(|number| format!("key-{number}"));
        names.map(|name| SigningKey::new(&name).jwk()).collect()
    };
    for document in [
        String::new(),
        "nonsense".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        json!({ "keys": {} }).to_string(),
        json!({ "keys": [private] }).to_string(),
        json!({ "keys": [key.jwk(), private] }).to_string(),
        json!({ "keys": [key.jwk(), { "kty": "oct", "k": "AAAA" }] }).to_string(),
        json!({ "keys": many(MOST_KEYS + 1) }).to_string(),
        format!(r#"{{"keys":[],"keys":[{}]}}"#, key.jwk()),
    ] {
        let (setup, site) = (Setup::new(), Site::plain());
        site.answer("", &document);
        assert!(setup.get(&site, "key").await.is_none(), "{document}");
    }
    // Keys of other kinds are for others (RFC 7517 §5).
    let (setup, site) = (Setup::new(), Site::plain());
    let rsa = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "rsa" });
    site.answer("", &json!({ "keys": [rsa, key.jwk()] }).to_string());
    assert!(setup.finds(&site, "key").await);
    assert!(!setup.finds(&site, "rsa").await);
}
