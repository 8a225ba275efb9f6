//! What becomes of authorization codes and of unfinished sign-ins, exactly.

use std::time::Duration;

use countersign::{
    domain::{
        change::{Change, EventType},
        client::Client,
        code::{AuthorizationCode, ChallengeSession, CodeRefusal, Redeemed, Redemption},
        event::EventQuery,
        factor::Proved,
        family::{
            EndReason, Family, Grant, Note, NoteKind, RefreshPolicy, Refusal, Terms, Verdict,
        },
        id::ClientId,
        revocation::RevokedValue,
    },
    store::StoreError,
};
use tokio::task::JoinSet;

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, client, create, delete, user},
    sign_in::{
        IDLE, LIFETIME, Site, TERMS, at, cause, code, hash, id, party, redemption, refresh,
        resources, scope,
    },
};
use crate::support::database::Database;

/// When codes expire here, in milliseconds after [`NOW`].
const EXPIRY: i64 = 60_000;

impl Site<'_> {
    /// Stores the code of this number.
    async fn put(&self, number: u128) -> AuthorizationCode {
        let code = code(self.grant().await);
        assert!(
            self.store
                .put_code(&hash(number), &code, &[].into())
                .await
                .unwrap()
        );
        code
    }

    /// Redeems a code, which must be refused.
    async fn refused(&self, redemption: &Redemption, millis: i64) -> CodeRefusal {
        match self
            .store
            .redeem_code(redemption, at(millis))
            .await
            .unwrap()
        {
            Redeemed::Refused(refusal) => refusal,
            opened @ Redeemed::Opened { .. } => panic!("{opened:?}"),
        }
    }

    /// The same, and nothing at all must change.
    async fn refused_without_a_trace(&self, redemption: &Redemption, millis: i64) -> CodeRefusal {
        let before = self.dump().await;
        let refusal = self.refused(redemption, millis).await;
        assert_eq!(self.dump().await, before, "{refusal:?}");
        refusal
    }
}

/// A redemption with the same code that would open another family.
fn again(redemption: &Redemption) -> Redemption {
    Redemption {
        family_id: id(1000 + redemption.family_id.uuid().as_u128()),
        cause: cause("thief"),
        ..redemption.clone()
    }
}

/// Everything that makes a redemption one that the code is not for, with the name of the refusal.
fn wrongs(right: &Redemption) -> Vec<(Redemption, CodeRefusal)> {
    let wrong = |refusal, change: fn(&mut Redemption)| {
        let mut redemption = right.clone();
        change(&mut redemption);
        (redemption, refusal)
    };
    vec![
        wrong(CodeRefusal::Unknown, |wrong| wrong.hash = hash(999)),
        wrong(CodeRefusal::OtherClient, |wrong| {
            wrong.client_id = ClientId::parse("other").unwrap();
        }),
        wrong(CodeRefusal::VerifierMissing, |wrong| {
            wrong.code_challenge = None;
        }),
        wrong(CodeRefusal::Verifier, |wrong| {
            wrong.code_challenge = Some("Challenge".to_owned());
        }),
        wrong(CodeRefusal::Verifier, |wrong| {
            wrong.code_challenge = Some(String::new());
        }),
        wrong(CodeRefusal::RedirectUri, |wrong| {
            wrong.redirect_uri = Some("https://app.example/back".to_owned());
        }),
        wrong(CodeRefusal::OtherKey, |wrong| wrong.dpop_jkt = None),
        wrong(CodeRefusal::OtherKey, |wrong| {
            wrong.dpop_jkt = Some("other".to_owned());
        }),
        wrong(CodeRefusal::Grant(Refusal::Scope), |wrong| {
            wrong.scope = Some(scope("read admin"));
        }),
        wrong(CodeRefusal::Grant(Refusal::Target), |wrong| {
            wrong.resources = resources(&["urn:other", "urn:foreign"]);
        }),
    ]
}

pub(super) async fn a_code_is_exchanged_for_a_family_once(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let code = site.put(1).await;
    let head = site.head().await;
    let right = Redemption {
        lifetime: LIFETIME,
        terms: Terms {
            mac_version: 4,
            ..TERMS
        },
        cause: cause("phone"),
        ..redemption(1, &code)
    };
    let now = at(EXPIRY - 1);
    let Redeemed::Opened {
        family,
        standing,
        nonce,
    } = site.store.redeem_code(&right, now).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(nonce, code.nonce);
    let expected = Family {
        id: id(1),
        grant: code.grant.clone(),
        for_session: false,
        counter: 0,
        mac_version: 4,
        mac_since: 0,
        rotated_at: now,
        created_at: now,
        idle_expires_at: now.plus(IDLE),
        expires_at: now.plus(LIFETIME),
        revoked_at: None,
        revoke_reason: None,
        first: party("phone"),
        last: party("phone"),
        notes: family.notes.clone(),
    };
    assert_eq!(*family, expected);
    assert_eq!(family.notes.iter().count(), 0);
    let stored = site.store.family(id(1)).await.unwrap().unwrap();
    assert_eq!(stored, (expected, *standing));
    // Signing in publishes nothing.
    assert_eq!(site.head().await, head);
    let refusal = site.refused(&again(&right), EXPIRY - 1).await;
    assert_eq!(refusal, CodeRefusal::Reused);
    assert!(
        site.store
            .family(again(&right).family_id)
            .await
            .unwrap()
            .is_none()
    );
}

pub(super) async fn a_family_lives_no_longer_than_the_shorter_of_its_lives(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let code = site.put(1).await;
    let right = Redemption {
        lifetime: Duration::from_secs(10),
        ..redemption(1, &code)
    };
    site.store.redeem_code(&right, NOW).await.unwrap();
    let (family, _) = site.store.family(id(1)).await.unwrap().unwrap();
    assert_eq!(
        (family.expires_at, family.idle_expires_at),
        (at(10_000), at(10_000))
    );
}

pub(super) async fn a_code_is_not_stored_for_what_is_over(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let fresh = site.grant().await;
    let try_to = async |number, grant: &Grant| {
        let before = site.dump().await;
        let code = code(grant.clone());
        let stored = site
            .store
            .put_code(&hash(number), &code, &[].into())
            .await
            .unwrap();
        assert_eq!(site.dump().await != before, stored);
        stored
    };
    assert!(try_to(1, &fresh).await);
    for stale in [
        Grant {
            user_epoch: fresh.user_epoch + 1,
            ..fresh.clone()
        },
        Grant {
            client_epoch: fresh.client_epoch ^ 1,
            ..fresh.clone()
        },
        Grant {
            client_id: ClientId::parse("other").unwrap(),
            ..fresh.clone()
        },
    ] {
        assert!(!try_to(2, &stale).await, "{stale:?}");
    }
    site.set_user("disabled = 1").await;
    assert!(!try_to(2, &fresh).await);
    site.set_user("disabled = 0").await;
    for disabled in [true, false] {
        site.change_client(|before| Client { disabled, ..before })
            .await;
        assert_eq!(try_to(2, &fresh).await, !disabled);
    }
    // Nobody has the hash of another code.
    let twice = site
        .store
        .put_code(&hash(2), &code(fresh.clone()), &[].into())
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict)), "{twice:?}");
    site.delete_user().await;
    assert!(!try_to(3, &fresh).await);
}

pub(super) async fn a_code_is_exchanged_only_by_whom_it_is_for(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let bound = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    let stored = code(bound);
    assert!(
        site.store
            .put_code(&hash(1), &stored, &[].into())
            .await
            .unwrap()
    );
    let right = redemption(1, &stored);
    for (wrong, expected) in wrongs(&right) {
        let refusal = site.refused_without_a_trace(&wrong, 1).await;
        assert_eq!(refusal, expected);
    }
    for late in [EXPIRY, EXPIRY + 1] {
        let refusal = site.refused_without_a_trace(&right, late).await;
        assert_eq!(refusal, CodeRefusal::Expired);
    }
    // None of that has used it up. The redirect need not be said again.
    let right = Redemption {
        redirect_uri: None,
        ..right
    };
    let opened = site
        .store
        .redeem_code(&right, at(EXPIRY - 1))
        .await
        .unwrap();
    assert!(matches!(opened, Redeemed::Opened { .. }), "{opened:?}");
}

pub(super) async fn what_a_code_was_stored_without_is_not_to_be_presented(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let bare = AuthorizationCode {
        redirect_uri: None,
        code_challenge: None,
        nonce: None,
        ..code(site.grant().await)
    };
    assert!(
        site.store
            .put_code(&hash(1), &bare, &[].into())
            .await
            .unwrap()
    );
    let right = redemption(1, &bare);
    let verifier = Redemption {
        code_challenge: Some("challenge".to_owned()),
        ..right.clone()
    };
    let refusal = site.refused_without_a_trace(&verifier, 1).await;
    assert_eq!(refusal, CodeRefusal::VerifierUnexpected);
    let redirect = Redemption {
        redirect_uri: Some(String::new()),
        ..right.clone()
    };
    let refusal = site.refused_without_a_trace(&redirect, 1).await;
    assert_eq!(refusal, CodeRefusal::RedirectUri);
    // A key may be presented all the same.
    let with_key = Redemption {
        dpop_jkt: Some("key".to_owned()),
        ..right
    };
    let Redeemed::Opened { family, nonce, .. } =
        site.store.redeem_code(&with_key, at(1)).await.unwrap()
    else {
        panic!()
    };
    assert_eq!((nonce, &family.grant.dpop_jkt), (None, &None));
}

/// Goes through the cases from the last to the first. Those after it hold as well, so that each two
/// neighbours are told apart.
pub(super) async fn the_cases_of_a_code_are_judged_in_their_order(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let bound = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    let (used, unused) = (code(bound.clone()), code(bound));
    for (number, code) in [(1, &used), (2, &unused)] {
        assert!(
            site.store
                .put_code(&hash(number), code, &[].into())
                .await
                .unwrap()
        );
    }
    let right = redemption(1, &used);
    let opened = site.store.redeem_code(&right, NOW).await.unwrap();
    assert!(matches!(opened, Redeemed::Opened { .. }));
    site.set_user("session_epoch = 8").await;
    let gone = CodeRefusal::Grant(Refusal::UserSessionsEnded);
    let refusal = site
        .refused_without_a_trace(&redemption(2, &unused), 1)
        .await;
    assert_eq!(refusal, gone);
    let mut presented = again(&right);
    assert_eq!(site.refused(&presented, 1).await, CodeRefusal::Reused);
    let check = async |presented: &Redemption, millis, expected| {
        let refusal = site.refused_without_a_trace(presented, millis).await;
        assert_eq!(refusal, expected);
    };
    presented.resources = resources(&["urn:foreign"]);
    check(&presented, 1, CodeRefusal::Grant(Refusal::Target)).await;
    presented.scope = Some(scope("admin"));
    check(&presented, 1, CodeRefusal::Grant(Refusal::Scope)).await;
    presented.dpop_jkt = Some("other".to_owned());
    check(&presented, 1, CodeRefusal::OtherKey).await;
    presented.redirect_uri = Some("https://other.example".to_owned());
    check(&presented, 1, CodeRefusal::RedirectUri).await;
    presented.code_challenge = Some("other".to_owned());
    check(&presented, 1, CodeRefusal::Verifier).await;
    presented.code_challenge = None;
    check(&presented, 1, CodeRefusal::VerifierMissing).await;
    check(&presented, EXPIRY, CodeRefusal::Expired).await;
    presented.client_id = ClientId::parse("other").unwrap();
    check(&presented, EXPIRY, CodeRefusal::OtherClient).await;
    presented.hash = hash(9);
    check(&presented, EXPIRY, CodeRefusal::Unknown).await;
}

pub(super) async fn what_a_code_stands_for_is_looked_at_again_when_it_is_exchanged(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let code = site.put(1).await;
    let right = redemption(1, &code);
    let check = async |expected| {
        let refusal = site.refused_without_a_trace(&right, 1).await;
        assert_eq!(refusal, CodeRefusal::Grant(expected));
    };
    site.set_user("second_factor_required = 1").await;
    check(Refusal::OneFactor).await;
    site.set_user("second_factor_required = 0").await;
    site.set_user("disabled = 1").await;
    check(Refusal::UserDisabled).await;
    site.set_user("disabled = 0, session_epoch = 8").await;
    check(Refusal::UserSessionsEnded).await;
    let epoch = code.grant.user_epoch;
    site.set_user(&format!("session_epoch = {epoch}")).await;
    for disabled in [true, false] {
        site.change_client(|before| Client { disabled, ..before })
            .await;
        if disabled {
            check(Refusal::ClientDisabled).await;
        }
    }
    let change = Change::RevokeClientTokens {
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, change).await.unwrap();
    check(Refusal::ClientSessionsEnded).await;
    let gone = site.store.client(&site.client).await.unwrap().unwrap();
    apply(&*site.store, delete(&gone)).await.unwrap();
    check(Refusal::ClientSessionsEnded).await;
    apply(&*site.store, create(client("app"))).await.unwrap();
    check(Refusal::ClientSessionsEnded).await;
    site.delete_user().await;
    check(Refusal::UserDeleted).await;
}

pub(super) async fn a_code_used_again_ends_what_it_was_exchanged_for(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let bound = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    let family = site.open_for(1, bound).await;
    let bystander = site.open(2).await;
    let family = site.present_all(&family, &[(0, 5000)]).await;
    let right = redemption(1, &code(family.grant.clone()));
    // Whoever could not have exchanged it can end nothing.
    for (wrong, expected) in wrongs(&again(&right)) {
        let refusal = site.refused_without_a_trace(&wrong, 1).await;
        assert_eq!(refusal, expected);
    }
    let late = site.refused_without_a_trace(&again(&right), EXPIRY).await;
    assert_eq!(late, CodeRefusal::Expired);

    let head = site.head().await;
    let refusal = site.refused(&again(&right), EXPIRY - 1).await;
    assert_eq!(refusal, CodeRefusal::Reused);
    let row = site.row(&family).await;
    let ended = Family {
        revoked_at: Some(at(EXPIRY - 1)),
        revoke_reason: Some(EndReason::CodeReuse),
        notes: row.notes.clone(),
        ..family.clone()
    };
    assert_eq!(row, ended);
    let noted = Note {
        at: at(EXPIRY - 1),
        kind: NoteKind::CodeReused,
        counter: 1,
        party: party("thief"),
    };
    assert_eq!(row.notes.iter().collect::<Vec<_>>(), [&noted]);
    let entries = site.store.revocations_since(head).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].value, RevokedValue::of(&family.id.to_string()));
    assert_eq!(entries[0].expires_at, Some(TOKENS_DIE_AT));
    assert_eq!(site.head().await, head + 1);
    let query = EventQuery {
        kinds: vec![EventType::FamilyReuseDetected],
        limit: 9,
        ..EventQuery::default()
    };
    let events = site.store.events(&query).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].cause, cause("thief"));
    let after = events[0].after.as_ref().unwrap();
    assert_eq!(
        (&after["reason"], &after["refreshes"]),
        (&"code_reuse".into(), &1.into())
    );
    let token = site.verdict(refresh(&family, 1), at(EXPIRY)).await;
    assert_eq!(token, Verdict::Refused(Refusal::Ended));
    assert_eq!(site.row(&bystander).await, bystander);
    // A third time, there is nothing left to end.
    let third = site
        .refused_without_a_trace(&again(&right), EXPIRY - 1)
        .await;
    assert_eq!(third, CodeRefusal::Reused);
}

pub(super) async fn a_code_used_again_after_its_family_is_gone_changes_nothing(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    database.execute("delete from family").await;
    let right = redemption(1, &code(family.grant));
    let refusal = site.refused_without_a_trace(&again(&right), 1).await;
    assert_eq!(refusal, CodeRefusal::Reused);
}

pub(super) async fn of_50_who_exchange_a_code_at_once_one_gets_a_family_that_is_over(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let other = database.open().await;
    let code = site.put(1).await;
    let mut callers = JoinSet::new();
    for number in 0..50 {
        let store = if number % 2 == 0 { &site.store } else { &other }.clone();
        let redemption = Redemption {
            family_id: id(100 + number),
            ..redemption(1, &code)
        };
        callers.spawn(async move { store.redeem_code(&redemption, at(1)).await.unwrap() });
    }
    let mut opened = Vec::new();
    for redeemed in callers.join_all().await {
        match redeemed {
            Redeemed::Opened { family, .. } => opened.push(*family),
            Redeemed::Refused(refusal) => assert_eq!(refusal, CodeRefusal::Reused),
        }
    }
    assert_eq!(opened.len(), 1);
    let row = site.row(&opened[0]).await;
    assert_eq!(row.revoke_reason, Some(EndReason::CodeReuse));
    let counts: Vec<(i64, i64)> = database
        .rows(
            "select (select count(*) from family), \
             (select count(*) from event where type = 'family.reuse_detected')",
        )
        .await;
    assert_eq!(counts, [(1, 1)]);
}

pub(super) async fn an_exchange_that_fails_half_way_leaves_everything_as_it_was(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let fresh = redemption(1, &site.put(1).await);
    let used = site.open(2).await;
    let replay = again(&redemption(2, &code(used.grant.clone())));
    let before = site.dump().await;
    for table in [
        "family",
        "event",
        "change",
        "change_head",
        "revocation",
        "authorization_code",
    ] {
        database.break_table(table).await;
        let replayed = site.store.redeem_code(&replay, at(1)).await;
        let exchanged = match table {
            "family" | "authorization_code" => Some(site.store.redeem_code(&fresh, at(1)).await),
            _ => None,
        };
        database.mend_table(table).await;
        // What was used already is not written again.
        assert!(
            replayed.is_err() || table == "authorization_code",
            "{table}: {replayed:?}"
        );
        assert!(exchanged.is_none_or(|result| result.is_err()), "{table}");
        if table != "authorization_code" {
            assert_eq!(site.dump().await, before, "{table}");
        }
    }
    let opened = site.store.redeem_code(&fresh, at(1)).await.unwrap();
    assert!(matches!(opened, Redeemed::Opened { .. }));
    assert_eq!(site.refused(&replay, 1).await, CodeRefusal::Reused);
    assert_eq!(
        site.row(&used).await.revoke_reason,
        Some(EndReason::CodeReuse)
    );
}

fn challenge() -> ChallengeSession {
    ChallengeSession {
        client_id: ClientId::parse("app").unwrap(),
        client_epoch: i64::MAX,
        username: "Ünï'\"\\ \u{202e}".to_owned(),
        code_challenge: "challenge".to_owned(),
        scope: scope("read write"),
        resources: resources(&["urn:a", "https://b.example/?q='"]),
        dpop_jkt: Some("key".to_owned()),
        failures: u32::MAX,
        expires_at: at(1000),
        proved: Some(Proved::new(&user(1), vec!["pwd".to_owned()], at(-1))),
    }
}

pub(super) async fn an_unfinished_sign_in_is_taken_once(database: &Database) {
    let (one, other) = (database.open().await, database.open().await);
    let bare = ChallengeSession {
        scope: scope(""),
        resources: Vec::new(),
        dpop_jkt: None,
        failures: 0,
        ..challenge()
    };
    for (number, session) in [(1, challenge()), (2, bare)] {
        one.put_challenge(&hash(number), &session).await.unwrap();
        let twice = other.put_challenge(&hash(number), &session).await;
        assert!(matches!(twice, Err(StoreError::Conflict)), "{twice:?}");
        let mut takers = JoinSet::new();
        for taker in 0..32 {
            let store = if taker % 2 == 0 { &one } else { &other }.clone();
            let client = session.client_id.clone();
            takers.spawn(async move {
                store
                    .take_challenge(&hash(number), &client, at(999))
                    .await
                    .unwrap()
            });
        }
        let taken: Vec<_> = takers.join_all().await.into_iter().flatten().collect();
        assert_eq!(taken, [session]);
    }
}

pub(super) async fn an_unfinished_sign_in_is_left_to_its_client_until_it_is_over(
    database: &Database,
) {
    let store = database.open().await;
    let session = challenge();
    store.put_challenge(&hash(1), &session).await.unwrap();
    let before = database.dump(&["challenge_session"]).await;
    let other = ClientId::parse("other").unwrap();
    for (number, client, millis) in [
        (1, &other, 0),
        (2, &session.client_id, 0),
        (1, &session.client_id, 1000),
        (1, &session.client_id, 1001),
    ] {
        let taken = store
            .take_challenge(&hash(number), client, at(millis))
            .await;
        assert_eq!(taken.unwrap(), None);
        assert_eq!(database.dump(&["challenge_session"]).await, before);
    }
    let taken = store
        .take_challenge(&hash(1), &session.client_id, at(999))
        .await;
    assert_eq!(taken.unwrap(), Some(session));
}
