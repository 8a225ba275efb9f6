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
        family::{EndReason, Family, Grant, Outcome, RefreshPolicy, Refusal, Verdict},
        id::{SessionId, UserId},
        revocation::{RevocationKind, RevokedValue},
    },
    store::{Bounds, StoreError},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{
    sample::{NOW, TOKENS_DIE_AT, again, apply, end_sessions},
    sign_in::{Site, TERMS, at, code, hash, party, redemption, refresh, resources, scope},
};
use crate::support::{
    database::{Database, Engine},
    soon,
};

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
    if site
        .store
        .consent(site.user, &site.client)
        .await
        .unwrap()
        .is_none()
    {
        let consent = consent(site, &[("urn:other", "read")], 0).await;
        put_consent(site, &consent, None).await.unwrap();
    }
    session
}

/// What the site's user allows its client so many milliseconds after now.
pub(super) async fn consent(site: &Site<'_>, lines: &[(&str, &str)], millis: i64) -> Consent {
    let client = site.store.client(&site.client).await.unwrap().unwrap();
    Consent {
        subject: site.user,
        client_id: site.client.clone(),
        client_epoch: client.session_epoch,
        permissions: permissions(lines),
        given_at: at(millis),
    }
}

pub(super) async fn put_consent(
    site: &Site<'_>,
    consent: &Consent,
    expected: Option<Timestamp>,
) -> Result<Applied, StoreError> {
    let change = Change::PutConsent {
        consent: Box::new(consent.clone()),
        expected,
    };
    apply(&*site.store, change).await
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

pub(super) async fn ended(site: &Site<'_>, session: SessionId) -> Result<Applied, StoreError> {
    let change = Change::EndSession {
        session,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, change).await
}

/// A family that a session has brought.
pub(super) async fn brought(
    site: &Site<'_>,
    number: u128,
    session: SessionId,
    text: &str,
) -> Family {
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
    let listed = async |idle_since: i64, now: i64, limit: u32| {
        let reading = site
            .store
            .sessions(site.user, at(idle_since), at(now), limit);
        let sessions = reading.await.unwrap();
        sessions.iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(-1, 1, 9).await, [second.id, session.id]);
    assert_eq!(listed(-1, 1, 1).await, [second.id]);
    // Those that do not live any more leave room for those that do.
    assert_eq!(listed(0, 1, 1).await, [session.id]);
    assert_eq!(listed(-1, 100_000, 1).await, [session.id]);
    assert_eq!(listed(-1, 200_000, 1).await, [] as [SessionId; 0]);
    ended(&site, second.id).await.unwrap();
    assert_eq!(listed(-1, 1, 1).await, [session.id]);
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    assert_eq!(listed(-1, 1, 9).await, [] as [SessionId; 0]);
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
    assert!(
        site.store
            .put_code(&hash(5), &unused, &[].into())
            .await
            .unwrap()
    );
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
    let refused = CodeRefusal::Grant(Refusal::SignedOut);
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

/// However a session has ended, each use of what it has brought asks for it.
pub(super) async fn a_family_of_a_session_that_has_ended_is_dead(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let session = opened(&site, 1).await;
    let family = brought(&site, 1, session.id, "read").await;
    let offline = brought(&site, 2, session.id, "offline_access read").await;
    // The session has ended, and nobody has ended the family.
    let moment = NOW.millis();
    let sql = format!("update browser_session set ended_at = {moment}");
    database.execute(&sql).await;
    let batch = [refresh(&family, 0), refresh(&offline, 0)];
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    let verdicts: Vec<Verdict> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Judged { verdict, .. } => *verdict,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(verdicts[0], Verdict::Refused(Refusal::Ended));
    assert!(matches!(verdicts[1], Verdict::Granted(_)), "{verdicts:?}");
    let (row, standing) = site.store.family(family.id).await.unwrap().unwrap();
    assert_eq!(row.ending(&standing, at(1)), Some(Refusal::Ended));
    assert_eq!(standing.session_ended_at, Some(NOW));
}

/// Either the code is refused, or the end of the session finds what it was exchanged for.
pub(super) async fn a_code_redeemed_beside_the_end_of_its_session_leaves_nothing(
    database: &Database,
) {
    const ROUNDS: u128 = 24;
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let other = database.open().await;
    let mut families = Vec::new();
    for number in 1..=ROUNDS {
        let session = opened(&site, number).await;
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
        let head = site.head().await;
        // Where the engine lets it, the family is about to be written for as long as this is held.
        let holder = match database.engine() {
            Engine::Postgres if number % 8 == 0 => Some(hold_families(database).await),
            _ => None,
        };
        let redeeming = tokio::spawn({
            let (store, redemption) = (other.clone(), redemption(number, &code));
            async move {
                again(|| store.redeem_code(&redemption, at(1)))
                    .await
                    .unwrap()
            }
        });
        if holder.is_some() {
            soon(wait_for_locks(database, 1)).await;
        }
        for _ in 0..number % 8 {
            // About as long as one step of the other takes.
            site.store.client(&site.client).await.unwrap();
        }
        let ending = async { again(|| ended(&site, session.id)).await.unwrap() };
        let releasing = async {
            if let Some(mut holder) = holder {
                soon(wait_for_locks(database, 2)).await;
                let rollback = sqlx::raw_sql("rollback").execute(&mut holder).await;
                rollback.unwrap();
            }
        };
        tokio::join!(ending, releasing);
        match redeeming.await.unwrap() {
            Redeemed::Opened { family, .. } => {
                let row = site.row(&family).await;
                assert_eq!(row.revoke_reason, Some(EndReason::SignedOut), "{number}");
                let entries = site.store.revocations_since(head).await.unwrap();
                let values: Vec<_> = entries.iter().map(|entry| entry.value).collect();
                assert_eq!(values, [RevokedValue::of(&family.id.to_string())]);
                families.push(*family);
            }
            Redeemed::Refused(refusal) => {
                assert_eq!(refusal, CodeRefusal::Grant(Refusal::SignedOut));
            }
        }
    }
    // Nor does it live again when nobody knows of the session any more.
    let bounds = Bounds {
        now: NOW,
        changes_before: at(-1),
        events_before: None,
        families_before: at(100_000),
    };
    let swept = site.store.sweep(&bounds, 99).await.unwrap();
    assert_eq!(u128::from(swept.sessions), ROUNDS);
    for family in &families {
        let outcome = site.present(refresh(family, 0), at(2)).await;
        let Outcome::Judged { verdict, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(verdict, Verdict::Refused(Refusal::Ended));
    }
}

/// Lets nobody write families until what is returned ends its transaction.
async fn hold_families(database: &Database) -> PgConnection {
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    let lock = "begin; lock table family in share mode";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    holder
}

/// Returns when at least so many wait for locks in this database.
async fn wait_for_locks(database: &Database, count: i64) {
    let waiting = "select count(*) from pg_stat_activity \
         where datname = current_database() and wait_event_type = 'Lock'";
    while database.rows::<(i64,)>(waiting).await[0].0 < count {}
}

pub(super) async fn a_consent_is_replaced_and_withdrawn(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let first = consent(&site, &[("urn:other", "read"), ("urn:other", "")], 0).await;
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
    put_consent(&site, &first, None).await.unwrap();
    assert_eq!(read().await, Some(first.clone()));
    let lines = [("urn:other", "read"), ("https://api.example", "write")];
    let more = consent(&site, &lines, 5).await;
    // Only in place of what was seen.
    for expected in [None, Some(at(1))] {
        let late = put_consent(&site, &more, expected).await;
        assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    }
    put_consent(&site, &more, Some(NOW)).await.unwrap();
    assert_eq!(
        site.store.consents(site.user).await.unwrap(),
        std::slice::from_ref(&more)
    );
    let elsewhere = Site::at(
        database,
        site.store.clone(),
        "elsewhere",
        2,
        RefreshPolicy::Standard,
    )
    .await;
    let session = opened(&site, 7).await;
    let (family, spared) = (site.open(1).await, elsewhere.open(2).await);
    let by_browser = code(Grant {
        session_id: Some(session.id),
        ..site.grant().await
    });
    let put = async |number, lines: &[(&str, &str)]| {
        let (hash, asked) = (hash(number), permissions(lines));
        let putting = site.store.put_code(&hash, &by_browser, &asked);
        putting.await.unwrap()
    };
    assert!(put(5, &lines).await);
    // What is within it, and nothing beyond: not another token there, nor the same elsewhere.
    assert!(put(8, &lines[1..]).await);
    for beyond in [("urn:other", "write"), ("https://api.example", "read")] {
        assert!(!put(9, &[lines[0], beyond]).await, "{beyond:?}");
    }
    withdraw().await.unwrap();
    assert_eq!(read().await, None);
    let row = site.row(&family).await;
    assert_eq!(row.revoke_reason, Some(EndReason::ConsentWithdrawn));
    assert_eq!(elsewhere.row(&spared).await, spared);
    // A code under way is over, nobody gets another one, and nobody brings back what was seen before.
    let redeemed = site
        .store
        .redeem_code(&redemption(5, &by_browser), at(1))
        .await;
    let refused = redeemed.unwrap();
    assert!(
        matches!(refused, Redeemed::Refused(CodeRefusal::Unknown)),
        "{refused:?}"
    );
    let refused = site.store.put_code(&hash(6), &by_browser, &[].into()).await;
    assert!(!refused.unwrap());
    let late = put_consent(&site, &more, Some(at(5))).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
    // The trail tells the user of both.
    let query = EventQuery {
        concerning: Some(site.user),
        limit: 9,
        ..EventQuery::default()
    };
    let events = site.store.events(&query).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let expected = [
        "consent.withdrawn",
        "consent.given",
        "consent.given",
        "user.created",
    ];
    assert_eq!(kinds, expected);
}

pub(super) async fn nothing_is_kept_of_what_a_removed_user_had_allowed(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let allowed = consent(&site, &[("urn:other", "read")], 0).await;
    put_consent(&site, &allowed, None).await.unwrap();
    site.delete_user().await;
    assert_eq!(site.store.consents(site.user).await.unwrap(), []);
    let late = put_consent(&site, &allowed, None).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
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
