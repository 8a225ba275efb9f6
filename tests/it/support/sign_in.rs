//! Users, and their sign-ins as clients have them: the code is put into the database, the rest goes
//! over HTTP.

use std::time::Duration;

use countersign::{
    domain::{
        change::{Cause, Change, EventType},
        code::AuthorizationCode,
        family::{Family, Grant},
        id::{ClientId, FamilyId, UserId},
        resource::ResourceUri,
        scope::Scope,
        secret::{OneTimeKind, OneTimeSecret},
        user::{User, Username},
    },
    store::Store,
};

use super::server::{API, Answer, Registered, TestServer, answer};

/// The tokens of a sign-in.
#[derive(Clone, Debug)]
pub(crate) struct SignedIn {
    pub(crate) family: FamilyId,
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
}

impl SignedIn {
    fn of(answer: &Answer) -> Self {
        let access_token = answer.access_token();
        let payload = access_token.split('.').nth(1).unwrap();
        let payload = countersign_verifier::base64url::decode(payload).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        Self {
            family: FamilyId::parse(claims["sid"].as_str().unwrap()).unwrap(),
            access_token,
            refresh_token: refresh_token(answer),
        }
    }
}

/// The refresh token of a successful answer.
pub(crate) fn refresh_token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["refresh_token"].as_str().unwrap().to_owned()
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
        let id = UserId::from_uuid(self.clients.entropy.uuid_v7(now).unwrap());
        let user = User {
            id,
            username: Username::parse(name).unwrap(),
            password_hash: None,
            roles: Vec::new(),
            claims: serde_json::Map::new(),
            disabled: false,
            demo: false,
            session_epoch: 0,
            tokens_not_before: None,
            revision: 0,
            created_at: now,
            updated_at: now,
            password_changed_at: None,
        };
        self.apply(Change::PutUser {
            user: Box::new(user),
            expected: None,
            event: EventType::UserCreated,
            ends_sessions: false,
            tokens_die_at: now,
        })
        .await;
        id
    }

    /// A code for what a user grants to a client: `read write` at [`API`].
    pub(crate) async fn code(&self, client: &Registered, user: UserId) -> String {
        let now = self.clients.clock.now();
        let client_id = ClientId::parse(&client.id).unwrap();
        let registered = self.store().client(&client_id).await.unwrap().unwrap();
        let user = self.store().user(user).await.unwrap().unwrap();
        let code = AuthorizationCode {
            grant: Grant {
                client_id,
                client_epoch: registered.session_epoch,
                subject: user.id,
                user_epoch: user.session_epoch,
                session_id: None,
                scope: Scope::parse("read write").unwrap(),
                resources: vec![ResourceUri::parse(API).unwrap()],
                auth_time: now,
                amr: vec!["pwd".to_owned()],
                dpop_jkt: None,
            },
            redirect_uri: None,
            code_challenge: None,
            nonce: None,
            expires_at: now.plus(Duration::from_mins(1)),
            family_id: None,
        };
        let kind = OneTimeKind::AuthorizationCode;
        let secret = OneTimeSecret::mint(kind, &self.clients.entropy).unwrap();
        let put = self.store().put_code(&secret.hash(), &code).await;
        assert!(put.unwrap());
        secret.expose().to_owned()
    }

    /// A request of a client to the token endpoint.
    pub(crate) async fn exchange(&self, client: &Registered, form: &[(&str, &str)]) -> Answer {
        let request = self.token_request();
        let request = request.basic_auth(&client.id, Some(&client.secret));
        answer(request.form(form)).await
    }

    /// Exchanges a code.
    pub(crate) async fn redeem(&self, client: &Registered, code: &str) -> Answer {
        let form = [("grant_type", "authorization_code"), ("code", code)];
        self.exchange(client, &form).await
    }

    /// Signs a user in at a client.
    pub(crate) async fn sign_in(&self, client: &Registered, user: UserId) -> SignedIn {
        let code = self.code(client, user).await;
        SignedIn::of(&self.redeem(client, &code).await)
    }

    /// Presents a refresh token.
    pub(crate) async fn refresh(&self, client: &Registered, token: &str) -> Answer {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.exchange(client, &form).await
    }

    /// A family as it is in the database.
    pub(crate) async fn family(&self, id: FamilyId) -> Family {
        self.store().family(id).await.unwrap().unwrap().0
    }
}
