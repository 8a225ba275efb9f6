//! Sign-ins to try things on: a client, a user, and families opened as the service opens them.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change, EventType, Position},
        claims::RequestedClaims,
        client::Client,
        code::{AuthorizationCode, CODE_LIFE, Redeemed, Redemption},
        family::{
            Family, Grant, Intent, Outcome, Party, Presentation, RefreshPolicy, Standing, Terms,
            Verdict,
        },
        id::{ClientId, FamilyId, UserId},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
        user::User,
    },
    store::Store,
};
use uuid::Uuid;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, client, created, created_user, delete_user, update, user,
};
use crate::support::database::{Database, Engine};

/// How long families live without being refreshed, and at most.
pub(super) const IDLE: Duration = Duration::from_hours(7 * 24);
pub(super) const LIFETIME: Duration = Duration::from_hours(30 * 24);

/// On what terms tokens are presented, unless said otherwise.
pub(super) const TERMS: Terms = Terms {
    mac_version: 1,
    idle: IDLE,
    tokens_die_at: TOKENS_DIE_AT,
};

/// What clients may have, and users grant them.
pub(super) const OFFERED: [&str; 2] = ["https://api.example", "urn:other"];

/// Every table that families have to do with.
pub(super) const TABLES: [&str; 9] = [
    "family",
    "authorization_code",
    "challenge_session",
    "client",
    "end_user",
    "event",
    "change",
    "change_head",
    "revocation",
];

/// So many milliseconds after [`NOW`].
pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() + millis)
}

/// The milliseconds of a span.
pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap()
}

/// Somebody at an address of this name.
pub(super) fn cause(name: &str) -> Cause {
    Cause {
        actor: "app".to_owned(),
        address: Some(format!("{name}.example")),
        user_agent: Some(format!("{name}/1.0")),
        request_id: Some(format!("request of {name}")),
        reason: None,
    }
}

pub(super) fn party(name: &str) -> Party {
    Party::of(&cause(name))
}

pub(super) fn scope(text: &str) -> Scope {
    Scope::parse(text).unwrap()
}

pub(super) fn resources(texts: &[&str]) -> Vec<ResourceUri> {
    let parse = |text: &&str| ResourceUri::parse(text).unwrap();
    texts.iter().map(parse).collect()
}

/// The hash of a code, or of an `auth_session`, of this number.
pub(super) fn hash(number: u128) -> SecretHash {
    SecretHash::of(&format!("code {number}"))
}

/// The family of this number.
pub(super) fn id(number: u128) -> FamilyId {
    FamilyId::from_uuid(Uuid::from_u128(number))
}

/// The token of `counter`, as the client of the family presents it.
pub(super) fn refresh(family: &Family, counter: i64) -> Presentation {
    Presentation {
        family: family.id,
        counter,
        mac_version: family.mac_version,
        client_id: family.grant.client_id.clone(),
        dpop_jkt: family.grant.dpop_jkt.clone(),
        intent: Intent::Refresh {
            scope: None,
            resources: Vec::new(),
            offered: resources(&OFFERED),
        },
        cause: cause("app"),
    }
}

/// The same, by somebody else.
pub(super) fn refresh_by(name: &str, family: &Family, counter: i64) -> Presentation {
    Presentation {
        cause: cause(name),
        ..refresh(family, counter)
    }
}

/// The token of `counter`, presented to end the family.
pub(super) fn revoke(family: &Family, counter: i64) -> Presentation {
    Presentation {
        intent: Intent::Revoke,
        ..refresh(family, counter)
    }
}

/// A code for a grant, with all that a code can have.
pub(super) fn code(grant: Grant) -> AuthorizationCode {
    AuthorizationCode {
        grant,
        redirect_uri: Some("https://app.example/back?a='".to_owned()),
        code_challenge: Some("challenge".to_owned()),
        nonce: Some("nönce".to_owned()),
        expires_at: NOW.plus(CODE_LIFE),
        family_id: None,
    }
}

/// What is presented with the code of this number, which is to open the family of the same number.
pub(super) fn redemption(number: u128, code: &AuthorizationCode) -> Redemption {
    Redemption {
        hash: hash(number),
        client_id: code.grant.client_id.clone(),
        code_challenge: code.code_challenge.clone(),
        redirect_uri: code.redirect_uri.clone(),
        dpop_jkt: code.grant.dpop_jkt.clone(),
        scope: None,
        resources: Vec::new(),
        family_id: id(number),
        for_session: false,
        lifetime: LIFETIME,
        terms: TERMS,
        cause: cause("app"),
    }
}

/// What became of a token of a family that is there.
pub(super) fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Judged { verdict, .. } => *verdict,
        other => panic!("{other:?}"),
    }
}

/// Where a client has users who sign in.
pub(super) struct Site<'a> {
    pub(super) database: &'a Database,
    pub(super) store: Arc<dyn Store>,
    pub(super) client: ClientId,
    pub(super) user: UserId,
}

impl<'a> Site<'a> {
    /// One with a client of this policy.
    pub(super) async fn of(database: &'a Database, policy: RefreshPolicy) -> Self {
        let store = database.open().await;
        Self::at(database, store, "app", 1, policy).await
    }

    /// One with a client of this name and a user of this number, which must not be there yet.
    pub(super) async fn at(
        database: &'a Database,
        store: Arc<dyn Store>,
        name: &str,
        user: u128,
        policy: RefreshPolicy,
    ) -> Self {
        let registered = Client {
            refresh_policy: policy,
            ..client(name)
        };
        let client = created(&*store, registered).await.client_id;
        let site = Self {
            database,
            store,
            client,
            user: UserId::from_uuid(Uuid::from_u128(user)),
        };
        site.create_user().await;
        site
    }

    pub(super) async fn create_user(&self) {
        let user = User {
            id: self.user,
            roles: vec!["reader".to_owned()],
            claims: [("tier".to_owned(), 1.into())].into_iter().collect(),
            ..user(self.user.uuid().as_u128())
        };
        created_user(&*self.store, user).await;
    }

    /// Changes the client; in the meantime nobody else may.
    pub(super) async fn change_client(&self, change: impl FnOnce(Client) -> Client) {
        let before = self.store.client(&self.client).await.unwrap().unwrap();
        apply(&*self.store, update(change(before))).await.unwrap();
    }

    /// Changes the user, and ends its sessions if so wished.
    pub(super) async fn change_user(&self, ends_sessions: bool, change: impl FnOnce(User) -> User) {
        let before = self.store.user(self.user).await.unwrap().unwrap();
        let change = Change::PutUser {
            expected: Some(before.revision),
            user: Box::new(change(before)),
            event: EventType::UserUpdated,
            ends_sessions,
            tokens_die_at: TOKENS_DIE_AT,
        };
        apply(&*self.store, change).await.unwrap();
    }

    /// Changes the user's row behind the store's back.
    pub(super) async fn set_user(&self, assignments: &str) {
        let id = self.literal(self.user.uuid());
        self.database
            .execute(&format!(
                "update end_user set {assignments} where id = {id}"
            ))
            .await;
    }

    pub(super) async fn delete_user(&self) {
        let user = self.store.user(self.user).await.unwrap().unwrap();
        apply(&*self.store, delete_user(&user)).await.unwrap();
    }

    /// Changes the row of a family behind the store's back.
    pub(super) async fn set(&self, family: FamilyId, assignments: &str) {
        let id = self.literal(family.uuid());
        self.database
            .execute(&format!("update family set {assignments} where id = {id}"))
            .await;
    }

    fn literal(&self, id: Uuid) -> String {
        match self.database.engine() {
            Engine::Postgres => format!("'{id}'::uuid"),
            Engine::Sqlite => format!("x'{}'", id.simple()),
        }
    }

    /// What the user grants to the client now.
    pub(super) async fn grant(&self) -> Grant {
        let client = self.store.client(&self.client).await.unwrap().unwrap();
        let user = self.store.user(self.user).await.unwrap().unwrap();
        Grant {
            client_id: self.client.clone(),
            client_epoch: client.session_epoch,
            subject: self.user,
            user_epoch: user.session_epoch,
            session_id: None,
            scope: scope("read write"),
            resources: resources(&OFFERED),
            auth_time: at(-5000),
            amr: vec!["pwd".to_owned()],
            dpop_jkt: None,
            claims: RequestedClaims {
                id_token: ["email".to_owned()].into(),
                userinfo: ["name".to_owned(), "picture".to_owned()].into(),
            },
        }
    }

    /// Opens the family of this number.
    pub(super) async fn open(&self, number: u128) -> Family {
        self.open_for(number, self.grant().await).await
    }

    pub(super) async fn open_for(&self, number: u128, grant: Grant) -> Family {
        let code = code(grant);
        assert!(
            self.store
                .put_code(&hash(number), &code, &[].into())
                .await
                .unwrap()
        );
        let redemption = redemption(number, &code);
        match self.store.redeem_code(&redemption, NOW).await.unwrap() {
            Redeemed::Opened { family, .. } => *family,
            Redeemed::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    /// Makes families of these numbers that are as this one is, but for their ids.
    pub(super) async fn copy(&self, family: &Family, numbers: RangeInclusive<u128>) {
        self.copy_each(numbers.map(|number| (family.id, number)))
            .await;
    }

    /// Makes a family of each of these numbers that is as that one is, but for its id.
    pub(super) async fn copy_each(&self, copies: impl Iterator<Item = (FamilyId, u128)>) {
        let pair = |(original, number): (FamilyId, u128)| {
            let copy = self.literal(Uuid::from_u128(number));
            format!("({copy},{})", self.literal(original.uuid()))
        };
        let pairs = copies.map(pair).collect::<Vec<_>>().join(",");
        let columns = "client_id, client_epoch, subject, user_epoch, session_id, scope, resources, \
             auth_time, amr, dpop_jkt, counter, mac_version, mac_since, rotated_at, created_at, \
             idle_expires_at, expires_at, revoked_at, revoke_reason, first_address, first_agent, \
             last_address, last_agent, notes";
        self.database
            .execute(&format!(
                "with copy (copy_id, original) as (values {pairs}) insert into family (id, {columns}) \
                 select copy_id, {columns} from copy, family where id = original"
            ))
            .await;
    }

    /// The token of `counter` of a family of the site's client, presented by somebody.
    pub(super) fn token_by(&self, name: &str, family: FamilyId, counter: i64) -> Presentation {
        Presentation {
            family,
            counter,
            mac_version: TERMS.mac_version,
            client_id: self.client.clone(),
            dpop_jkt: None,
            intent: Intent::Refresh {
                scope: None,
                resources: Vec::new(),
                offered: resources(&OFFERED),
            },
            cause: cause(name),
        }
    }

    /// Presents one token.
    pub(super) async fn present(&self, presentation: Presentation, now: Timestamp) -> Outcome {
        let outcomes = self.store.rotate(&[presentation], &TERMS, now).await;
        outcomes.unwrap().pop().unwrap()
    }

    /// Presents one token; what became of it.
    pub(super) async fn verdict(&self, presentation: Presentation, now: Timestamp) -> Verdict {
        verdict(&self.present(presentation, now).await)
    }

    /// Presents the token of each of these counters at its time; the family as it is then.
    pub(super) async fn present_all(&self, family: &Family, tokens: &[(i64, i64)]) -> Family {
        for (counter, time) in tokens {
            self.present(refresh(family, *counter), at(*time)).await;
        }
        self.row(family).await
    }

    /// A family as it is stored.
    pub(super) async fn row(&self, family: &Family) -> Family {
        self.read(family).await.0
    }

    /// A family as it is stored, and what its client and user are now.
    pub(super) async fn read(&self, family: &Family) -> (Family, Standing) {
        self.store.family(family.id).await.unwrap().unwrap()
    }

    /// Everything that families have to do with, as it is stored.
    pub(super) async fn dump(&self) -> Vec<(&'static str, Vec<String>)> {
        self.database.dump(&TABLES).await
    }

    /// The place of the last change.
    pub(super) async fn head(&self) -> i64 {
        // Whoever is of another epoch is told what there is.
        let start = Position {
            epoch: Uuid::nil(),
            seq: 0,
        };
        self.store.changes_since(start, 0, NOW).await.unwrap().head
    }
}
