//! Sessions of browsers, and what users have allowed clients.

use std::collections::BTreeSet;

use countersign::{
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession,
        change::{Applied, Change, EventType},
        code::{CodeRefusal, Redeemed},
        consent::{Consent, Permission},
        event::EventQuery,
        family::{EndReason, Family, Grant, RefreshPolicy, Refusal},
        id::{SessionId, UserId},
        revocation::RevocationKind,
    },
    store::{Bounds, StoreError},
};
use uuid::Uuid;

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, end_sessions},
    sign_in::{Site, at, code, hash, party, redemption, resources, scope},
};
use crate::support::database::Database;

/// A session of the site's user.
pub(super) async fn session(site: &Site<'_>, number: u128) -> BrowserSession {
    let user = site.store.user(site.user).await.unwrap().unwrap();
    BrowserSession {
        id: SessionId::from_uuid(Uuid::from_u128(number)),
        subject: site.user,
        user_epoch: user.session_epoch,
        auth_time: at(-1000),
        amr: vec!["pwd".to_owned(), "'\"\\ ünï".to_owned()],
        seen_at: NOW,
        expires_at: at(100_000),
        ended_at: None,
        first: party("phone"),
        last: party("phone"),
    }
}

/// The same, stored under the hash of its number.
pub(super) async fn opened(site: &Site<'_>, number: u128) -> BrowserSession {
    let session = session(site, number).await;
    let is_put = site.store.put_session(&hash(number), &session).await;
    assert!(is_put.unwrap());
    session
}

fn permissions(lines: &[(&str, &str)]) -> BTreeSet<Permission> {
    let line = |(uri, token): &(&str, &str)| (resources(&[uri]).remove(0), (*token).to_owned());
    lines.iter().map(line).collect()
}

async fn found(site: &Site<'_>, number: u128) -> Option<BrowserSession> {
    let found = site.store.session(&hash(number)).await.unwrap();
    found.map(|(session, user)| {
        assert_eq!(user.unwrap().username, "user-1");
        session
    })
}

async fn ended(site: &Site<'_>, session: SessionId) -> Result<Applied, StoreError> {
    let change = Change::EndSession {
        session,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, change).await
}

/// A family that a session has brought.
async fn brought(site: &Site<'_>, number: u128, session: SessionId, text: &str) -> Family {
    let grant = Grant {
        session_id: Some(session),
        scope: scope(text),
        ..site.grant().await
    };
    site.open_for(number, grant).await
}

pub(super) async fn a_session_is_read_back_as_it_was_put(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let session = opened(&site, 1).await;
    assert_eq!(found(&site, 1).await, Some(session.clone()));
    assert_eq!(found(&site, 2).await, None);
    // The same one under another hash: the user has authenticated again.
    let renewed = BrowserSession {
        auth_time: at(500),
        amr: vec!["otp".to_owned()],
        seen_at: at(500),
        expires_at: at(200_000),
        last: party("laptop"),
        ..session.clone()
    };
    assert!(site.store.put_session(&hash(2), &renewed).await.unwrap());
    assert_eq!(found(&site, 1).await, None);
    assert_eq!(found(&site, 2).await, Some(renewed.clone()));
    // Nobody takes over that of another user.
    let taken = BrowserSession {
        subject: UserId::from_uuid(Uuid::from_u128(99)),
        ..renewed.clone()
    };
    assert!(!site.store.put_session(&hash(3), &taken).await.unwrap());
    assert_eq!(found(&site, 3).await, None);
    assert_eq!(found(&site, 2).await, Some(renewed.clone()));

    let later = at(700);
    // What comes late from a node that is behind changes nothing.
    for (name, now) in [("tablet", later), ("old", at(600))] {
        let party = party(name);
        let noted = site.store.note_session(session.id, &party, now);
        noted.await.unwrap();
    }
    let expected = BrowserSession {
        seen_at: later,
        last: party("tablet"),
        ..renewed
    };
    assert_eq!(found(&site, 2).await, Some(expected));
    let second = opened(&site, 5).await;
    let listed = site.store.sessions(site.user, 9).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|session| session.id).collect();
    assert_eq!(listed, [second.id, session.id]);
    assert_eq!(site.store.sessions(site.user, 1).await.unwrap().len(), 1);
}

pub(super) async fn the_end_of_a_session_ends_what_was_not_to_outlast_it(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let (session, other) = (opened(&site, 1).await, opened(&site, 2).await);
    let family = brought(&site, 1, session.id, "read").await;
    let offline = brought(&site, 2, session.id, "offline_access read").await;
    let of_other = brought(&site, 3, other.id, "read").await;
    let without = site.open(4).await;
    let unused = code(Grant {
        session_id: Some(session.id),
        ..site.grant().await
    });
    assert!(site.store.put_code(&hash(5), &unused).await.unwrap());
    let head = site.head().await;
    ended(&site, session.id).await.unwrap();
    let row = site.row(&family).await;
    assert_eq!(row.revoke_reason, Some(EndReason::SignedOut));
    for living in [&offline, &of_other, &without] {
        assert_eq!(site.row(living).await, *living);
    }
    let entries = site.store.revocations_since(head).await.unwrap();
    let [entry] = &entries[..] else {
        panic!("{entries:?}")
    };
    assert_eq!(entry.kind, RevocationKind::Sid);
    // A code of it gets nothing any more, and nobody renews it.
    let redeemed = site.store.redeem_code(&redemption(5, &unused), at(1)).await;
    let refused = CodeRefusal::Grant(Refusal::Ended);
    assert!(matches!(redeemed.unwrap(), Redeemed::Refused(refusal) if refusal == refused),);
    assert!(!site.store.put_session(&hash(9), &session).await.unwrap());
    assert_eq!(found(&site, 9).await, None);
    assert_eq!(found(&site, 1).await.unwrap().ended_at, Some(NOW));
    let again = ended(&site, session.id).await;
    assert!(matches!(again, Err(StoreError::Conflict)), "{again:?}");
    let nobodys = ended(&site, SessionId::from_uuid(Uuid::from_u128(77))).await;
    assert!(matches!(nobodys, Err(StoreError::Conflict)));
    let query = EventQuery {
        kinds: vec![EventType::SessionEnded],
        limit: 9,
        ..EventQuery::default()
    };
    let events = site.store.events(&query).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].target, session.id.to_string());
}

pub(super) async fn a_consent_is_replaced_and_withdrawn(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let client = site.store.client(&site.client).await.unwrap().unwrap();
    let consent = Consent {
        subject: site.user,
        client_id: site.client.clone(),
        client_epoch: client.session_epoch,
        permissions: permissions(&[("urn:other", "read"), ("urn:other", "")]),
        given_at: NOW,
    };
    let read = async || site.store.consent(site.user, &site.client).await.unwrap();
    let withdraw = async || {
        let change = Change::WithdrawConsent {
            subject: site.user,
            client_id: site.client.clone(),
            tokens_die_at: TOKENS_DIE_AT,
        };
        apply(&*site.store, change).await
    };
    assert_eq!(read().await, None);
    assert!(matches!(withdraw().await, Err(StoreError::Conflict)));
    site.store.put_consent(&consent).await.unwrap();
    assert_eq!(read().await, Some(consent.clone()));
    let more = Consent {
        permissions: permissions(&[("urn:other", "read"), ("https://api.example", "write")]),
        given_at: at(5),
        ..consent
    };
    site.store.put_consent(&more).await.unwrap();
    assert_eq!(site.store.consents(site.user).await.unwrap(), [more]);
    let elsewhere = Site::at(
        database,
        site.store.clone(),
        "elsewhere",
        2,
        RefreshPolicy::Standard,
    )
    .await;
    let (family, spared) = (site.open(1).await, elsewhere.open(2).await);
    withdraw().await.unwrap();
    assert_eq!(read().await, None);
    let row = site.row(&family).await;
    assert_eq!(row.revoke_reason, Some(EndReason::ConsentWithdrawn));
    assert_eq!(elsewhere.row(&spared).await, spared);
}

pub(super) async fn sessions_are_swept_when_they_expired_long_ago(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let session = opened(&site, 1).await;
    let sweep = async |families_before: Timestamp| {
        let bounds = Bounds {
            now: NOW,
            changes_before: at(-1),
            events_before: None,
            families_before,
        };
        site.store.sweep(&bounds, 9).await.unwrap().sessions
    };
    let before = Timestamp::from_millis(session.expires_at.millis() - 1);
    assert_eq!(sweep(before).await, 0);
    assert!(found(&site, 1).await.is_some());
    assert_eq!(sweep(session.expires_at).await, 1);
    assert_eq!(found(&site, 1).await, None);
}

/// Nobody knows who has signed out since the backup was made.
pub(super) async fn a_restored_database_has_no_living_session_unless_told_otherwise(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let session = opened(&site, 1).await;
    for (keep_tokens, ended_at) in [(true, None), (false, Some(NOW))] {
        let restore = Change::Restore {
            keep_tokens,
            tokens_die_at: TOKENS_DIE_AT,
        };
        apply(&*site.store, restore).await.unwrap();
        let expected = BrowserSession {
            ended_at,
            ..session.clone()
        };
        assert_eq!(found(&site, 1).await, Some(expected));
    }
}

/// What the store keeps of a session whose user's sessions were ended: another epoch.
pub(super) async fn a_session_shows_what_has_become_of_its_user(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let session = opened(&site, 1).await;
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    let (row, user) = site.store.session(&hash(1)).await.unwrap().unwrap();
    assert_eq!(row, session);
    assert_ne!(user.unwrap().epoch, session.user_epoch);
    site.delete_user().await;
    let (_, user) = site.store.session(&hash(1)).await.unwrap().unwrap();
    assert_eq!(user, None);
}
