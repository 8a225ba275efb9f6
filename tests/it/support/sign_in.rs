//! Users, and their sign-ins as clients have them: the code is put into the database, the rest goes
//! over HTTP.

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};
use countersign::{
    admin::client::ClientMetadata,
    clock::Timestamp,
    domain::{
        change::{Cause, Change, EventType},
        claims::RequestedClaims,
        client::Client,
        code::{AuthorizationCode, CODE_LIFE, s256},
        consent::Consent,
        family::{Family, Grant},
        id::{ClientId, FamilyId, UserId},
        profile::Profile,
        resource::ResourceUri,
        scope::Scope,
        secret::{Ticket, TicketKind},
        user::{PasswordHash, User, Username},
    },
    entropy::Entropy,
    identity::password::Password,
    store::Store,
};
use countersign_verifier::base64url;
use reqwest::{RequestBuilder, Response};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::{
    openmetrics,
    process::until,
    server::{API, Answer, Registered, TestServer, answer, metadata},
};

/// What proves that somebody has asked for a code (RFC 7636 Appendix B).
pub(crate) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// The tokens of a sign-in.
#[derive(Clone, Debug)]
pub(crate) struct SignedIn {
    pub(crate) family: FamilyId,
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
}

impl SignedIn {
    /// Those of a successful answer.
    pub(crate) fn of(answer: &Answer) -> Self {
        let access_token = answer.access_token();
        let sid = &claims(&access_token)["sid"];
        Self {
            family: FamilyId::parse(sid.as_str().unwrap()).unwrap(),
            access_token,
            refresh_token: answer.refresh_token(),
        }
    }

    /// What the access token is for.
    pub(crate) fn scope(&self) -> String {
        claims(&self.access_token)["scope"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Answer {
    /// The refresh token of a successful answer.
    pub(crate) fn refresh_token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["refresh_token"].as_str().unwrap().to_owned()
    }
}

impl TestServer {
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.clients.store
    }

    /// Applies a change beside the server, as the service itself.
    pub(crate) async fn apply(&self, change: Change) {
        let now = self.clients.clock.now();
        let applied = self.store().apply(&change, &Cause::system(), now).await;
        applied.unwrap();
    }

    /// Creates a user while the server runs.
    pub(crate) async fn user(&self, name: &str) -> UserId {
        let now = self.clients.clock.now();
        create_user(self.store(), name, now).await.id
    }

    /// What a user grants to a client: `read write` at [`API`].
    pub(crate) async fn grant(&self, client: &Registered, user: UserId) -> Grant {
        let id = ClientId::parse(&client.id).unwrap();
        let client = self.store().client(&id).await.unwrap().unwrap();
        let user = self.store().user(user).await.unwrap().unwrap();
        grant(&client, &user, self.clients.clock.now())
    }

    /// Has a user allow a client `read` at [`API`].
    pub(crate) async fn allow(&self, client: &Registered, user: UserId) {
        let grant = self.grant(client, user).await;
        let consent = consent(&grant, self.clients.clock.now());
        self.apply(consent).await;
    }

    /// A code for what a user grants to a client.
    pub(crate) async fn code(&self, client: &Registered, user: UserId) -> String {
        let grant = self.grant(client, user).await;
        let code = code_for(grant, self.clients.clock.now());
        put_code(self.store(), &code).await
    }

    /// A request of a client to the token endpoint, not sent yet.
    pub(crate) fn by(&self, client: &Registered, form: &[(&str, &str)]) -> RequestBuilder {
        by(self.token_request(), client, form)
    }

    /// A request of a client to the token endpoint.
    pub(crate) async fn exchange(&self, client: &Registered, form: &[(&str, &str)]) -> Answer {
        answer(self.by(client, form)).await
    }

    /// Exchanges a code.
    pub(crate) async fn redeem(&self, client: &Registered, code: &str) -> Answer {
        self.exchange(client, &redeem(code)).await
    }

    /// Signs a user in at a client.
    pub(crate) async fn sign_in(&self, client: &Registered, user: UserId) -> SignedIn {
        let code = self.code(client, user).await;
        SignedIn::of(&self.redeem(client, &code).await)
    }

    /// Presents a refresh token.
    pub(crate) async fn refresh(&self, client: &Registered, token: &str) -> Answer {
        self.exchange(client, &refresh(token)).await
    }

    /// A family as it is in the database.
    pub(crate) async fn family(&self, id: FamilyId) -> Family {
        self.store().family(id).await.unwrap().unwrap().0
    }

    /// Fills the line of those whose passwords are hashed, at a server that hashes one at a time: `sign_in`
    /// is one of the user `slow`, who is made here. Until what is returned is dropped, nobody gets in.
    pub(crate) async fn full_line(
        &self,
        sign_in: impl Fn() -> RequestBuilder,
    ) -> JoinSet<reqwest::Result<Response>> {
        let slow = self.user("slow").await;
        let hash = hash_of(PASSWORD);
        let takes_seconds = hash.phc().replace("m=8,t=1,", "m=19456,t=300,");
        assert_ne!(takes_seconds, hash.phc());
        update_user(self.store(), slow, self.clients.clock.now(), |user| {
            user.password_hash = Some(PasswordHash::from_phc(takes_seconds));
        })
        .await;
        let mut line = JoinSet::new();
        // One at work, and as many as may wait.
        for _ in 0..=32 {
            line.spawn(sign_in().send());
        }
        until("a full line", async || {
            let (_, metrics) = openmetrics::scrape(self.admin).await;
            let waiting = metrics.value("countersign_queue_depth{queue=\"passwords\"}");
            (waiting > 31.5).then_some(())
        })
        .await;
        line
    }
}

/// The password of every user who has one.
pub(crate) const PASSWORD: &str = "zwölf Boxkämpfer jagen Eva";

/// The hash of a password, such as little work makes: who signs in with it has as little. The hashes that
/// the service makes itself are tried where it makes them.
pub(crate) fn hash_of(password: &str) -> PasswordHash {
    let params = Params::new(Params::MIN_M_COST, 1, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let password = Password::read(password).unwrap();
    let hashed = argon2.hash_password_with_salt(password.expose().as_bytes(), b"0123456789abcdef");
    PasswordHash::from_phc(hashed.unwrap().to_string())
}

/// A client that keeps no secret.
pub(crate) fn public() -> ClientMetadata {
    ClientMetadata {
        token_endpoint_auth_method: Some("none".to_owned()),
        ..metadata()
    }
}

/// A form sent by a client that authenticates as it is registered.
pub(crate) fn by(
    request: RequestBuilder,
    client: &Registered,
    form: &[(&str, &str)],
) -> RequestBuilder {
    if client.secret.is_empty() {
        let mut form = form.to_vec();
        form.push(("client_id", &client.id));
        request.form(&form)
    } else {
        request
            .basic_auth(&client.id, Some(&client.secret))
            .form(form)
    }
}

/// The form that exchanges a code.
pub(crate) fn redeem(code: &str) -> [(&str, &str); 3] {
    [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("code_verifier", VERIFIER),
    ]
}

/// The form that presents a refresh token.
pub(crate) fn refresh(token: &str) -> [(&str, &str); 2] {
    [("grant_type", "refresh_token"), ("refresh_token", token)]
}

/// The claims of a token, whoever has signed it.
pub(crate) fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64url::decode(payload).unwrap()).unwrap()
}

/// Creates a user without a password.
pub(crate) async fn create_user(store: &dyn Store, name: &str, now: Timestamp) -> User {
    let id = UserId::from_uuid(Entropy::new().uuid_v7(now).unwrap());
    let user = User {
        id,
        username: Username::parse(name).unwrap(),
        password_hash: None,
        roles: Vec::new(),
        claims: Map::new(),
        profile: Profile::default(),
        disabled: false,
        second_factor_required: false,
        demo: false,
        session_epoch: 0,
        tokens_not_before: None,
        revision: 0,
        created_at: now,
        updated_at: now,
        password_changed_at: None,
    };
    put_user(store, user, None, EventType::UserCreated, now).await
}

/// Changes a user, who must not have changed meanwhile.
pub(crate) async fn update_user(
    store: &dyn Store,
    id: UserId,
    now: Timestamp,
    change: impl FnOnce(&mut User),
) {
    let mut user = store.user(id).await.unwrap().unwrap();
    let expected = user.revision;
    change(&mut user);
    put_user(store, user, Some(expected), EventType::UserUpdated, now).await;
}

async fn put_user(
    store: &dyn Store,
    user: User,
    expected: Option<i64>,
    event: EventType,
    now: Timestamp,
) -> User {
    let id = user.id;
    let change = Change::PutUser {
        user: Box::new(user),
        expected,
        event,
        ends_sessions: false,
        tokens_die_at: now,
    };
    store.apply(&change, &Cause::system(), now).await.unwrap();
    store.user(id).await.unwrap().unwrap()
}

/// What a user grants to a client: `read write` at [`API`].
pub(crate) fn grant(client: &Client, user: &User, now: Timestamp) -> Grant {
    Grant {
        client_id: client.client_id.clone(),
        client_epoch: client.session_epoch,
        subject: user.id,
        user_epoch: user.session_epoch,
        session_id: None,
        scope: Scope::parse("read write").unwrap(),
        resources: vec![ResourceUri::parse(API).unwrap()],
        auth_time: now,
        amr: vec!["pwd".to_owned()],
        dpop_jkt: None,
        claims: RequestedClaims::default(),
    }
}

/// That the user of a grant allows its client `read` at [`API`].
pub(crate) fn consent(grant: &Grant, now: Timestamp) -> Change {
    let consent = Consent {
        subject: grant.subject,
        client_id: grant.client_id.clone(),
        client_epoch: grant.client_epoch,
        permissions: [(ResourceUri::parse(API).unwrap(), "read".to_owned())].into(),
        given_at: now,
    };
    Change::PutConsent {
        consent: Box::new(consent),
        expected: None,
    }
}

/// A code for a grant, as whoever asked for it with [`VERIFIER`] gets it.
pub(crate) fn code_for(grant: Grant, now: Timestamp) -> AuthorizationCode {
    AuthorizationCode {
        grant,
        redirect_uri: None,
        code_challenge: s256(VERIFIER),
        nonce: None,
        expires_at: now.plus(CODE_LIFE),
        family_id: None,
    }
}

/// Stores a code, and returns its text.
pub(crate) async fn put_code(store: &dyn Store, code: &AuthorizationCode) -> String {
    let text = Ticket::mint(TicketKind::AuthorizationCode, &Entropy::new()).unwrap();
    assert!(
        store
            .put_code(&text.hash(), code, &[].into())
            .await
            .unwrap()
    );
    text.expose().to_owned()
}
