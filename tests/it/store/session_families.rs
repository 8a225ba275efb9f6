//! What sessions of browsers are at clients that have tokens for them without a code.

use countersign::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        change::Change,
        code::{CodeRefusal, Redeemed, Redemption},
        consent::Consent,
        family::{EndReason, Family, Grant, Party, RefreshPolicy, Refusal, Verdict},
        id::{FamilyId, SessionId},
        session_family::{SessionFamily, SessionGrant},
    },
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    sample::{TOKENS_DIE_AT, apply, end_sessions},
    sessions::{opened, session},
    sign_in::{
        IDLE, Site, TERMS, at, cause, code, hash, id, party, redemption, refresh, resources,
        revoke, scope,
    },
};
use crate::support::database::Database;

/// A site whose user has allowed its client something.
async fn site(database: &Database) -> Site<'_> {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    allow(&site, None).await;
    site
}

async fn allow(site: &Site<'_>, expected: Option<Timestamp>) {
    let client = site.store.client(&site.client).await.unwrap().unwrap();
    let consent = Consent {
        subject: site.user,
        client_id: site.client.clone(),
        client_epoch: client.session_epoch,
        permissions: [(resources(&["urn:other"]).remove(0), "read".to_owned())].into(),
        given_at: at(8),
    };
    let change = Change::PutConsent {
        consent: Box::new(consent),
        expected,
    };
    apply(&*site.store, change).await.unwrap();
}

/// What the client of the site asks for in the name of a session; with the name of a new family.
async fn asked(site: &Site<'_>, session: SessionId, family: u128) -> SessionGrant {
    let client = site.store.client(&site.client).await.unwrap().unwrap();
    SessionGrant {
        session,
        idle: IDLE,
        client_id: site.client.clone(),
        client_epoch: client.session_epoch,
        second_factor_required: false,
        scope: scope("read write"),
        resources: resources(&["urn:other"]),
        allowed: [(resources(&["urn:other"]).remove(0), "read".to_owned())].into(),
        family_id: id(family),
        terms: TERMS,
        cause: cause("app"),
    }
}

/// The family that a session gets.
async fn family(site: &Site<'_>, asked: &SessionGrant, now: Timestamp) -> Family {
    match site.store.session_family(asked, now).await.unwrap() {
        SessionFamily::Open { family, .. } => *family,
        SessionFamily::Refused(refusal) => panic!("{refusal:?}"),
    }
}

/// Why a session gets none.
async fn refusal(site: &Site<'_>, asked: &SessionGrant, now: Timestamp) -> Refusal {
    let before = site.dump().await;
    let asked = site.store.session_family(asked, now).await.unwrap();
    let SessionFamily::Refused(refusal) = asked else {
        panic!("{asked:?}");
    };
    assert_eq!(site.dump().await, before, "a refusal leaves a trace");
    refusal
}

pub(super) async fn of_32_who_ask_at_once_all_get_the_same_family(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let mut tabs = JoinSet::new();
    for number in 1..=32 {
        let (store, asked) = (site.store.clone(), asked(&site, session.id, number).await);
        tabs.spawn(async move { store.session_family(&asked, at(5)).await.unwrap() });
    }
    let mut ids: Vec<FamilyId> = Vec::new();
    for outcome in tabs.join_all().await {
        match outcome {
            SessionFamily::Open { family, .. } => ids.push(family.id),
            SessionFamily::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
    assert_eq!(ids.len(), 32);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // Each session has its own, and each client.
    let other = opened(&site, 2).await;
    let of_other = family(&site, &asked(&site, other.id, 40).await, at(5)).await;
    assert_eq!(of_other.id, id(40));
}

pub(super) async fn a_family_of_a_session_is_what_the_session_is(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let asks = asked(&site, session.id, 7).await;
    let opened = family(&site, &asks, at(5)).await;
    let row = site.row(&opened).await;
    assert_eq!(row, opened);
    assert!(row.for_session);
    assert_eq!(row.id, id(7));
    assert_eq!(row.grant.session_id, Some(session.id));
    assert_eq!(row.grant.subject, site.user);
    assert_eq!(
        (row.grant.auth_time, &row.grant.amr),
        (session.auth_time, &session.amr)
    );
    assert_eq!(row.expires_at, session.expires_at);
    assert_eq!(row.created_at, at(5));
    // It is asked for again, and nothing is written.
    let before = site.dump().await;
    assert_eq!(family(&site, &asks, at(6)).await, opened);
    assert_eq!(site.dump().await, before);
    // The user has authenticated again, in another way; the client may have less.
    let renewed = BrowserSession {
        auth_time: at(50),
        amr: vec!["pwd".to_owned(), "otp".to_owned()],
        seen_at: at(50),
        expires_at: at(200_000),
        ..session
    };
    assert!(site.store.put_session(&hash(1), &renewed).await.unwrap());
    let less = SessionGrant {
        scope: scope("read"),
        cause: cause("tablet"),
        ..asks
    };
    let follows = family(&site, &less, at(60)).await;
    assert_eq!(site.row(&follows).await, follows);
    let mut expected = opened;
    expected.grant.auth_time = at(50);
    expected.grant.amr = renewed.amr;
    expected.grant.scope = scope("read");
    expected.rotated_at = at(60);
    expected.idle_expires_at = at(200_000);
    expected.expires_at = at(200_000);
    expected.last = party("tablet");
    assert_eq!(follows, expected);
}

pub(super) async fn a_family_of_a_session_has_no_refresh_tokens(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let family = family(&site, &asked(&site, session.id, 1).await, at(5)).await;
    for counter in [-1, 0, 1] {
        for presented in [refresh(&family, counter), revoke(&family, counter)] {
            let verdict = site.verdict(presented, at(6)).await;
            assert_eq!(verdict, Verdict::Refused(Refusal::Unknown));
        }
    }
    assert_eq!(site.row(&family).await, family);
}

pub(super) async fn a_family_of_a_session_ends_with_it(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let asks = asked(&site, session.id, 1).await;
    let opened = family(&site, &asks, at(5)).await;
    let end = Change::EndSession {
        session: session.id,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, end).await.unwrap();
    assert_eq!(
        site.row(&opened).await.revoke_reason,
        Some(EndReason::SignedOut)
    );
    assert_eq!(refusal(&site, &asks, at(6)).await, Refusal::SignedOut);
    let nobodys = SessionGrant {
        session: SessionId::from_uuid(Uuid::from_u128(77)),
        ..asks
    };
    assert_eq!(refusal(&site, &nobodys, at(6)).await, Refusal::SignedOut);
}

pub(super) async fn a_session_that_is_over_gets_nothing(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let asks = asked(&site, session.id, 1).await;
    let end = session.expires_at;
    let before = Timestamp::from_millis(end.millis() - 1);
    assert_eq!(refusal(&site, &asks, end).await, Refusal::Expired);
    let hasty = SessionGrant {
        idle: std::time::Duration::from_millis(50),
        ..asks.clone()
    };
    assert_eq!(refusal(&site, &hasty, at(50)).await, Refusal::IdleExpired);
    assert_eq!(family(&site, &asks, before).await.expires_at, end);
    assert_eq!(refusal(&site, &asks, end).await, Refusal::Expired);
    site.set_user("disabled = 1").await;
    assert_eq!(refusal(&site, &asks, before).await, Refusal::UserDisabled);
    site.set_user("disabled = 0").await;
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    assert_eq!(
        refusal(&site, &asks, before).await,
        Refusal::UserSessionsEnded
    );
    site.delete_user().await;
    assert_eq!(refusal(&site, &asks, before).await, Refusal::UserDeleted);
}

pub(super) async fn what_was_ended_by_itself_stays_so_until_the_user_authenticates_again(
    database: &Database,
) {
    let site = site(database).await;
    let own = opened(&site, 1).await;
    let first = family(&site, &asked(&site, own.id, 1).await, at(5)).await;
    let end = Change::EndFamily {
        family: first.id,
        reason: EndReason::RevokedByOperator,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, end).await.unwrap();
    let again = asked(&site, own.id, 2).await;
    assert_eq!(refusal(&site, &again, at(6)).await, Refusal::Ended);
    let renewed = BrowserSession {
        auth_time: at(7),
        seen_at: at(7),
        ..session(&site, 1).await
    };
    assert!(site.store.put_session(&hash(1), &renewed).await.unwrap());
    let second = family(&site, &again, at(8)).await;
    assert_eq!(second.id, id(2));

    // What was taken back is there again when it was given again.
    let withdraw = Change::WithdrawConsent {
        subject: site.user,
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, withdraw).await.unwrap();
    assert_eq!(
        site.row(&second).await.revoke_reason,
        Some(EndReason::ConsentWithdrawn)
    );
    let third = asked(&site, own.id, 3).await;
    assert_eq!(refusal(&site, &third, at(9)).await, Refusal::SignedOut);
    allow(&site, None).await;
    // But no more than was given again.
    let mut wider = third.clone();
    let line = (resources(&["urn:other"]).remove(0), "write".to_owned());
    wider.allowed.insert(line);
    assert_eq!(refusal(&site, &wider, at(9)).await, Refusal::SignedOut);
    let third = family(&site, &third, at(9)).await;
    assert_eq!(third.id, id(3));
    assert_eq!(third.last, Party::of(&cause("app")));
}

/// What a code of the session brings to a host, which is to be called by this number.
async fn taken(site: &Site<'_>, session: &BrowserSession, number: u128) -> Redeemed {
    let code = code(Grant {
        session_id: Some(session.id),
        ..site.grant().await
    });
    assert!(
        site.store
            .put_code(&hash(number), &code, &[].into())
            .await
            .unwrap()
    );
    let redemption = Redemption {
        for_session: true,
        ..redemption(number, &code)
    };
    site.store.redeem_code(&redemption, at(6)).await.unwrap()
}

pub(super) async fn codes_bring_a_session_one_family_and_none_that_was_ended(database: &Database) {
    let site = site(database).await;
    let own = opened(&site, 1).await;
    let family_of = |redeemed: Redeemed| match redeemed {
        Redeemed::Opened { family, .. } => family.id,
        Redeemed::Refused(refusal) => panic!("{refusal:?}"),
    };
    assert_eq!(family_of(taken(&site, &own, 11).await), id(11));
    // Again, and without a code: it is the same.
    assert_eq!(family_of(taken(&site, &own, 12).await), id(11));
    let asks = asked(&site, own.id, 13).await;
    let followed = family(&site, &asks, at(6)).await;
    assert_eq!(followed.id, id(11));
    // What the code asked for by name was for the client that got it; from here on nothing is written.
    assert!(!site.grant().await.claims.is_empty());
    assert!(followed.grant.claims.is_empty());
    let before = site.dump().await;
    assert_eq!(family(&site, &asks, at(7)).await, followed);
    assert_eq!(site.dump().await, before);
    // A code that comes twice ends nothing that is of the session, and is good for nothing.
    let code = code(Grant {
        session_id: Some(own.id),
        ..site.grant().await
    });
    let again = Redemption {
        for_session: true,
        ..redemption(12, &code)
    };
    let before = site.dump().await;
    let again = site.store.redeem_code(&again, at(6)).await.unwrap();
    assert!(matches!(again, Redeemed::Refused(CodeRefusal::Reused)));
    assert_eq!(site.dump().await, before);
    // What was ended is not brought back by a code, but by an authentication.
    let end = Change::EndFamily {
        family: id(11),
        reason: EndReason::RevokedByOperator,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, end).await.unwrap();
    let refused = taken(&site, &own, 14).await;
    let ended = CodeRefusal::Grant(Refusal::Ended);
    assert!(matches!(refused, Redeemed::Refused(refusal) if refusal == ended));
    let renewed = BrowserSession {
        auth_time: at(7),
        seen_at: at(7),
        ..session(&site, 1).await
    };
    assert!(site.store.put_session(&hash(1), &renewed).await.unwrap());
    assert_eq!(family_of(taken(&site, &renewed, 15).await), id(15));
}

pub(super) async fn a_client_whose_sessions_were_ended_has_another_family(database: &Database) {
    let site = site(database).await;
    let session = opened(&site, 1).await;
    let before = asked(&site, session.id, 1).await;
    family(&site, &before, at(5)).await;
    let end = Change::RevokeClientTokens {
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, end).await.unwrap();
    // Whoever does not know yet gets nothing.
    assert_eq!(
        refusal(&site, &before, at(6)).await,
        Refusal::ClientSessionsEnded
    );
    let after = asked(&site, session.id, 2).await;
    allow(&site, Some(at(8))).await;
    assert_eq!(family(&site, &after, at(2000)).await.id, id(2));
}
