//! Things to store, and short ways to store them.

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Applied, Cause, Change, EventType},
        client::{AuthMethod, Client, GrantType, IdTokenAlg},
        family::RefreshPolicy,
        id::{ClientId, Kid, MasterKeyId, ResourceId, SecretId, UserId},
        key::{KeyAlgorithm, KeyRecord, KeySchedule, KeyTimes, KeyUse, SealedKey},
        profile::Profile,
        redirect::RedirectUri,
        resource::{Resource, ResourceUri},
        scope::Scope,
        secret::{SecretHash, StoredSecret},
        user::{PasswordHash, User, Username},
    },
    store::{Store, StoreError},
};
use uuid::Uuid;

use crate::support::database::Database;

/// How often something is tried that this machine may be too slow for.
pub(super) const ATTEMPTS: u128 = 5;

/// What comes of something for whoever comes back when the store cannot do it in time: where the machine
/// stands still it may give up waiting for locks.
pub(super) async fn again<T, F: Future<Output = Result<T, StoreError>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut told = attempt().await;
    for _ in 1..ATTEMPTS {
        match told {
            Err(StoreError::Unavailable(_)) => told = attempt().await,
            _ => break,
        }
    }
    told
}

/// When everything here happens, unless said otherwise.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

/// When the last token issued at [`NOW`] is dead.
pub(super) const TOKENS_DIE_AT: Timestamp = Timestamp::from_millis(NOW.millis() + 4_000_000);

/// A client with no more than it must have.
pub(super) fn client(id: &str) -> Client {
    Client {
        client_id: ClientId::parse(id).unwrap(),
        client_name: format!("Client {id}"),
        auth_method: AuthMethod::None,
        grant_types: Vec::new(),
        scope: Scope::default(),
        resources: Vec::new(),
        default_resource: None,
        redirect_uris: Vec::new(),
        post_logout_redirect_uris: Vec::new(),
        backchannel_logout_uri: None,
        backchannel_logout_session_required: false,
        id_token_alg: IdTokenAlg::Es256,
        require_pkce: true,
        second_factor_required: false,
        allowed_origins: Vec::new(),
        access_token_ttl_seconds: None,
        first_party: false,
        session_tokens: false,
        forward_auth: false,
        refresh_policy: RefreshPolicy::Standard,
        refresh_sharing_acknowledged: false,
        session_epoch: 0,
        disabled: false,
        demo: false,
        jwks: None,
        jwks_uri: None,
        tokens_not_before: None,
        secrets: Vec::new(),
        revision: 0,
        created_at: NOW,
        updated_at: NOW,
    }
}

/// A client with everything it can have.
pub(super) fn full_client(id: &str) -> Client {
    let uri = |text| ResourceUri::parse(text).unwrap();
    let redirect = |text| RedirectUri::parse(text).unwrap();
    Client {
        client_name: "Ünï 日本 🦀 \u{202e}x\u{200d} '\"\\ \r\n\t % _ $1 ?".to_owned(),
        auth_method: AuthMethod::ClientSecretPost,
        grant_types: vec![GrantType::ClientCredentials],
        scope: Scope::parse("a:b !~ write").unwrap(),
        resources: vec![uri("urn:z"), uri("https://a.example/?q=%22'")],
        default_resource: Some(uri("urn:z")),
        redirect_uris: vec![
            redirect("https://b.example/cb?a=%22,b"),
            redirect("http://[::1]/cb"),
        ],
        post_logout_redirect_uris: vec![redirect("com.example.app:/bye")],
        backchannel_logout_uri: Some("https://d.example/out?a=%27".to_owned()),
        backchannel_logout_session_required: true,
        id_token_alg: IdTokenAlg::Rs256,
        require_pkce: false,
        second_factor_required: true,
        allowed_origins: vec!["https://b.example".to_owned(), "http://[::1]:80".to_owned()],
        access_token_ttl_seconds: Some(u32::MAX),
        first_party: true,
        session_tokens: true,
        forward_auth: true,
        refresh_policy: RefreshPolicy::Shared,
        refresh_sharing_acknowledged: true,
        disabled: true,
        demo: true,
        jwks: Some(serde_json::json!({ "keys": [{ "kty": "EC", "x": "ä'" }] })),
        jwks_uri: Some("https://c.example/?a=%27".to_owned()),
        secrets: vec![secret(1), secret(2)],
        ..client(id)
    }
}

/// The stored form of a secret; those of higher numbers come later.
pub(super) fn secret(number: u128) -> StoredSecret {
    StoredSecret {
        id: SecretId::from_uuid(Uuid::from_u128(number)),
        hash: SecretHash::of(&plain_secret(number)),
        created_at: NOW,
    }
}

/// What the client itself keeps.
pub(super) fn plain_secret(number: u128) -> String {
    format!("cs_cs_{number:043}")
}

/// A user with no more than it must have; those of higher numbers come later.
pub(super) fn user(number: u128) -> User {
    User {
        id: UserId::from_uuid(Uuid::from_u128(number)),
        username: Username::parse(&format!("user-{number}")).unwrap(),
        password_hash: None,
        roles: Vec::new(),
        claims: serde_json::Map::new(),
        profile: Profile::default(),
        disabled: false,
        second_factor_required: false,
        demo: false,
        session_epoch: 0,
        tokens_not_before: None,
        revision: 0,
        created_at: NOW,
        updated_at: NOW,
        password_changed_at: None,
    }
}

/// The change that creates a user.
pub(super) fn create_user(user: User) -> Change {
    Change::PutUser {
        user: Box::new(user),
        expected: None,
        event: EventType::UserCreated,
        ends_sessions: false,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that replaces a user of the same revision.
pub(super) fn update_user(user: User) -> Change {
    Change::PutUser {
        expected: Some(user.revision),
        user: Box::new(user),
        event: EventType::UserUpdated,
        ends_sessions: false,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that removes a user of the same revision.
pub(super) fn delete_user(user: &User) -> Change {
    Change::DeleteUser {
        id: user.id,
        expected: user.revision,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that ends the sessions of a user.
pub(super) fn end_sessions(id: UserId) -> Change {
    Change::EndUserSessions {
        id,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// Creates a user and reads it back.
pub(super) async fn created_user(store: &dyn Store, user: User) -> User {
    let id = user.id;
    apply(store, create_user(user)).await.unwrap();
    store.user(id).await.unwrap().unwrap()
}

/// The hash of a password of this number.
pub(super) fn password_hash(number: u128) -> PasswordHash {
    PasswordHash::from_phc(format!(
        "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0{number}$aGFzaGhhc2hoYXNo{number}"
    ))
}

/// A resource of this number.
pub(super) fn resource(number: u128) -> Resource {
    Resource {
        id: ResourceId::from_uuid(Uuid::from_u128(number)),
        resource: ResourceUri::parse(&format!("https://api-{number}.example")).unwrap(),
        name: format!("Resource № {number}"),
        scopes: Scope::parse("read write").unwrap(),
        scope_descriptions: [("read".to_owned(), "See “it” & 'all'".to_owned())].into(),
        introspection_clients: vec![ClientId::parse("b").unwrap(), ClientId::parse("a").unwrap()],
        demo: true,
    }
}

/// A key that becomes active so many milliseconds after [`NOW`].
pub(super) fn key(name: &str, activates_after: i64) -> KeyRecord {
    KeyRecord {
        kid: Kid::parse(&format!("{name:_<43}")).unwrap(),
        key_use: KeyUse::Signing,
        algorithm: KeyAlgorithm::Es256,
        version: None,
        times: KeyTimes {
            published_at: NOW,
            activates_at: Timestamp::from_millis(NOW.millis() + activates_after),
            withdrawn_at: None,
            revoked_at: None,
        },
        sealed: SealedKey {
            master_id: MasterKeyId::from_uuid(Uuid::from_u128(7)),
            ciphertext: vec![0, 255, b'\'', 1],
        },
    }
}

/// A refresh-MAC key of this version that becomes active so many milliseconds after [`NOW`].
pub(super) fn mac_key(version: u32, activates_after: i64) -> KeyRecord {
    KeyRecord {
        key_use: KeyUse::RefreshMac,
        algorithm: KeyAlgorithm::Hs256,
        version: Some(version),
        ..key(&format!("mac{version}"), activates_after)
    }
}

/// A schedule of such keys to be put in place of the one at `revision`.
pub(super) fn mac_schedule(revision: i64, keys: Vec<KeyRecord>) -> KeySchedule {
    KeySchedule {
        key_use: KeyUse::RefreshMac,
        ..schedule(revision, keys)
    }
}

/// A key for RS256 that becomes active so many milliseconds after [`NOW`].
pub(super) fn rs256_key(name: &str, activates_after: i64) -> KeyRecord {
    KeyRecord {
        key_use: KeyUse::IdTokenRs256,
        algorithm: KeyAlgorithm::Rs256,
        ..key(name, activates_after)
    }
}

/// A schedule of such keys to be put in place of the one at `revision`.
pub(super) fn rs256_schedule(revision: i64, keys: Vec<KeyRecord>) -> KeySchedule {
    KeySchedule {
        key_use: KeyUse::IdTokenRs256,
        ..schedule(revision, keys)
    }
}

/// A schedule to be put in place of the one at `revision`.
pub(super) fn schedule(revision: i64, keys: Vec<KeyRecord>) -> KeySchedule {
    KeySchedule {
        key_use: KeyUse::Signing,
        revision,
        primary_master: Some(MasterKeyId::from_uuid(Uuid::from_u128(7))),
        keys,
    }
}

/// The change that registers a client.
pub(super) fn create(client: Client) -> Change {
    Change::PutClient {
        client: Box::new(client),
        expected: None,
        event: EventType::ClientCreated,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that replaces a client of the same revision.
pub(super) fn update(client: Client) -> Change {
    Change::PutClient {
        expected: Some(client.revision),
        client: Box::new(client),
        event: EventType::ClientUpdated,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that removes a client of the same revision.
pub(super) fn delete(client: &Client) -> Change {
    Change::DeleteClient {
        client_id: client.client_id.clone(),
        expected: client.revision,
        tokens_die_at: TOKENS_DIE_AT,
    }
}

/// The change that puts a key schedule.
pub(super) fn put(schedule: KeySchedule) -> Change {
    Change::PutKeys {
        schedule,
        event: EventType::KeyCreated,
    }
}

/// Applies a change as the service itself.
pub(super) async fn apply(store: &dyn Store, change: Change) -> Result<Applied, StoreError> {
    store.apply(&change, &Cause::system(), NOW).await
}

/// Registers a client and reads it back.
pub(super) async fn created(store: &dyn Store, client: Client) -> Client {
    let id = client.client_id.clone();
    apply(store, create(client)).await.unwrap();
    store.client(&id).await.unwrap().unwrap()
}

/// Applies a change, which must conflict and leave nothing.
pub(super) async fn assert_conflict(database: &Database, store: &dyn Store, change: Change) {
    let before = traces(database).await;
    let result = apply(store, change).await;
    assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
    assert_eq!(traces(database).await, before);
}

/// What changes leave behind, counted: events, changes, the head, revocations.
pub(super) async fn traces(database: &Database) -> (i64, i64, i64, i64) {
    database
        .rows(
            "select (select count(*) from event), (select count(*) from change), \
             (select seq from change_head), (select count(*) from revocation)",
        )
        .await[0]
}
