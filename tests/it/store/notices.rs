//! What clients are to be told when their users have been signed out.

use std::collections::BTreeSet;

use countersign::{
    domain::{
        change::{Cause, Change, EventType},
        client::Client,
        code::{Redeemed, Redemption},
        event::EventQuery,
        family::{EndReason, RefreshPolicy, Verdict},
        logout_notice::{Hopeless, LogoutNotice, NoticeClaim, Settling},
        revocation::RevokedValue,
    },
    store::StoreError,
};
use serde_json::json;

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, end_sessions},
    sessions::{brought, consent, ended, opened, put_consent},
    sign_in::{Site, at, code, hash, id, redemption, refresh_by, revoke},
};
use crate::support::database::{Database, Engine, statement};

/// A site whose client wants to be told.
async fn told(database: &Database) -> Site<'_> {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    site.change_client(|before| Client {
        backchannel_logout_uri: Some("https://app.example/out".to_owned()),
        ..before
    })
    .await;
    site
}

async fn end(site: &Site<'_>, number: u128, reason: EndReason) {
    let change = Change::EndFamily {
        family: id(number),
        reason,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, change).await.unwrap();
}

/// So many notices, of each client, until so many milliseconds after now.
fn claim_of(limit: u32, millis: i64) -> NoticeClaim {
    NoticeClaim {
        limit,
        limit_of_a_client: limit,
        except: Vec::new(),
        lease_until: at(millis),
    }
}

/// What is taken on so many milliseconds after now, for a minute, and how many wait.
async fn claim(site: &Site<'_>, millis: i64, limit: u32) -> (Vec<LogoutNotice>, u64) {
    let claim = claim_of(limit, millis + 60_000);
    let claiming = site.store.claim_notices(&claim, at(millis));
    let mut claimed = claiming.await.unwrap();
    claimed.notices.sort_by_key(|notice| notice.family);
    (claimed.notices, claimed.waiting)
}

async fn forget(site: &Site<'_>, notice: &LogoutNotice) {
    let settling = site.store.settle_notice(notice, Settling::Forget, NOW);
    settling.await.unwrap();
}

pub(super) async fn the_end_of_a_sign_in_is_to_be_told(database: &Database) {
    let site = told(database).await;
    for number in 1..=4 {
        site.open(number).await;
    }
    assert_eq!(claim(&site, 0, 9).await, (Vec::new(), 0));
    end(&site, 1, EndReason::RevokedByOperator).await;
    end(&site, 2, EndReason::SignedOut).await;
    // The client knows what it has done itself.
    end(&site, 3, EndReason::RevokedByClient).await;
    let (notices, waiting) = claim(&site, 0, 9).await;
    assert_eq!(waiting, 2);
    let families: Vec<_> = notices.iter().map(|notice| notice.family).collect();
    assert_eq!(families, [id(1), id(2)]);
    for notice in &notices {
        assert_eq!(notice.client_id, site.client);
        assert_eq!(notice.subject, site.user);
        assert_eq!((notice.attempts, notice.created_at), (1, NOW));
        forget(&site, notice).await;
    }
    assert_eq!(claim(&site, 100_000, 9).await, (Vec::new(), 0));
    // All at once: the one that is left.
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    let (notices, _) = claim(&site, 0, 9).await;
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0].family, id(4));
    // Of a user who has no sign-in left there is nothing to tell.
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    assert_eq!(claim(&site, 0, 9).await, (Vec::new(), 1));
}

pub(super) async fn who_does_not_want_to_be_told_is_not(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    site.open(1).await;
    site.open(2).await;
    end(&site, 1, EndReason::RevokedByOperator).await;
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    assert_eq!(claim(&site, 0, 9).await, (Vec::new(), 0));
}

pub(super) async fn what_somebody_has_taken_on_nobody_else_does(database: &Database) {
    let site = told(database).await;
    for number in 1..=6 {
        site.open(number).await;
        end(&site, number, EndReason::RevokedByOperator).await;
    }
    let other = database.open().await;
    let claim_three = NoticeClaim {
        limit_of_a_client: 6,
        ..claim_of(3, 60_000)
    };
    let (first, second) = tokio::join!(
        site.store.claim_notices(&claim_three, NOW),
        other.claim_notices(&claim_three, NOW)
    );
    let mut taken: Vec<_> = [first.unwrap(), second.unwrap()]
        .iter()
        .flat_map(|claimed| claimed.notices.clone())
        .map(|notice| notice.id)
        .collect();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 6);
    assert_eq!(claim(&site, 59_999, 9).await, (Vec::new(), 6));
    // When the time is over that it was taken on for, somebody else tells it.
    let (again, _) = claim(&site, 60_000, 9).await;
    assert_eq!(again.len(), 6);
    assert!(again.iter().all(|notice| notice.attempts == 2));
    // What was taken on before does not count any more: neither is it told, nor put off.
    let late = LogoutNotice {
        attempts: 1,
        ..again[0].clone()
    };
    forget(&site, &late).await;
    let putting_off = site
        .store
        .settle_notice(&late, Settling::PutOffAll(at(60_001)), at(60_000));
    putting_off.await.unwrap();
    let drop_late = Change::DropNotice {
        notice: Box::new(late),
        hopeless: None,
        event: EventType::LogoutNoticeDropped,
        problem: "no answer".to_owned(),
    };
    let dropped = apply(&*site.store, drop_late).await;
    assert!(matches!(dropped, Err(StoreError::Conflict)), "{dropped:?}");
    assert_eq!(claim(&site, 60_001, 9).await, (Vec::new(), 6));
    // One is put off, one is dropped, with its event.
    let putting_off =
        site.store
            .settle_notice(&again[0], Settling::PutOffAll(at(90_000)), at(60_001));
    putting_off.await.unwrap();
    let (due, _) = claim(&site, 90_000, 9).await;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id, again[0].id);
    let drop = || Change::DropNotice {
        notice: Box::new(due[0].clone()),
        hopeless: None,
        event: EventType::LogoutNoticeDropped,
        problem: "no answer".to_owned(),
    };
    apply(&*site.store, drop()).await.unwrap();
    let twice = apply(&*site.store, drop()).await;
    assert!(matches!(twice, Err(StoreError::Conflict)), "{twice:?}");
    let query = EventQuery {
        kinds: vec![EventType::LogoutNoticeDropped],
        limit: 9,
        ..EventQuery::default()
    };
    let events = site.store.events(&query).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].target, site.client.to_string());
    assert_eq!(claim(&site, 90_000, 9).await, (Vec::new(), 5));
}

pub(super) async fn no_client_waits_until_another_is_told_all(database: &Database) {
    let busy = told(database).await;
    let store = busy.store.clone();
    let quiet = Site::at(database, store, "quiet", 2, RefreshPolicy::Standard).await;
    quiet
        .change_client(|before| Client {
            backchannel_logout_uri: Some("https://quiet.example/out".to_owned()),
            ..before
        })
        .await;
    for number in 1..=9 {
        busy.open(number).await;
        end(&busy, number, EndReason::RevokedByOperator).await;
    }
    quiet.open(20).await;
    end(&quiet, 20, EndReason::RevokedByOperator).await;
    let of_each = NoticeClaim {
        limit_of_a_client: 3,
        ..claim_of(4, 60_000)
    };
    let claimed = busy.store.claim_notices(&of_each, NOW).await.unwrap();
    let (of_quiet, of_busy): (Vec<_>, Vec<_>) = claimed
        .notices
        .iter()
        .partition(|notice| notice.client_id == quiet.client);
    assert_eq!((of_busy.len(), of_quiet.len()), (3, 1));
    // Who is being told is left alone.
    let except = NoticeClaim {
        except: vec![busy.client.clone(), quiet.client.clone()],
        ..of_each.clone()
    };
    let claimed = busy.store.claim_notices(&except, NOW).await.unwrap();
    assert_eq!((claimed.notices, claimed.waiting), (Vec::new(), 10));
    // Who did not answer is left alone with all there is, and nobody else is.
    let retry = Settling::PutOffAll(at(10_000));
    for notice in [of_busy[0], of_quiet[0]] {
        let settling = busy.store.settle_notice(notice, retry, at(1));
        settling.await.unwrap();
    }
    quiet.open(21).await;
    end(&quiet, 21, EndReason::RevokedByOperator).await;
    let (due, _) = claim(&busy, 9_999, 99).await;
    let families: Vec<_> = due.iter().map(|notice| notice.family).collect();
    assert_eq!(families, [id(21)]);
    // One of each that somebody has set out to tell, and six that would have been told as little.
    let (due, _) = claim(&busy, 10_000, 99).await;
    assert_eq!(due.len(), 8);
    assert!(due.iter().all(|notice| notice.attempts == 2), "{due:?}");
}

/// What an epoch has ended is not ended once more by a consent that is withdrawn.
pub(super) async fn what_was_over_before_is_not_told_again(database: &Database) {
    let site = told(database).await;
    let withdraw = async || {
        let allowed = consent(&site, &[("urn:other", "read")], 0).await;
        put_consent(&site, &allowed, None).await.unwrap();
        let change = Change::WithdrawConsent {
            subject: site.user,
            client_id: site.client.clone(),
            tokens_die_at: TOKENS_DIE_AT,
        };
        apply(&*site.store, change).await.unwrap();
        let query = EventQuery {
            kinds: vec![EventType::ConsentWithdrawn],
            latest_first: true,
            limit: 1,
            ..EventQuery::default()
        };
        let events = site.store.events(&query).await.unwrap();
        events[0].after.as_ref().unwrap()["families"].clone()
    };
    site.open(1).await;
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    let (notices, _) = claim(&site, 0, 9).await;
    assert_eq!(notices.len(), 1);
    forget(&site, &notices[0]).await;
    assert_eq!(withdraw().await, json!([]));
    assert_eq!(claim(&site, 0, 9).await, (Vec::new(), 0));
    // One that is over by its age is ended all the same, and its client may know of it.
    site.open(3).await;
    let idle = NOW.millis() - 1;
    site.set(id(3), &format!("idle_expires_at = {idle}")).await;
    site.open(4).await;
    let ended = [id(4).to_string(), id(3).to_string()];
    assert_eq!(withdraw().await, json!(ended));
    let (notices, _) = claim(&site, 0, 9).await;
    let families: Vec<_> = notices.iter().map(|notice| notice.family).collect();
    assert_eq!(families, [id(3), id(4)]);
}

/// A client that takes others is there.
pub(super) async fn what_one_notice_waits_for_no_other_does(database: &Database) {
    let site = told(database).await;
    for number in 1..=3 {
        site.open(number).await;
        end(&site, number, EndReason::RevokedByOperator).await;
    }
    let (due, _) = claim(&site, 0, 1).await;
    let settling = site
        .store
        .settle_notice(&due[0], Settling::PutOff(at(10)), NOW);
    settling.await.unwrap();
    let (others, _) = claim(&site, 0, 9).await;
    assert_eq!(others.len(), 2);
    assert!(
        others.iter().all(|notice| notice.attempts == 1),
        "{others:?}"
    );
    let (again, _) = claim(&site, 10, 9).await;
    assert_eq!((again[0].id, again[0].attempts), (due[0].id, 2));
}

/// A client that is gone for good must not have its notices pile up.
pub(super) async fn what_nobody_answers_to_is_dropped_at_once(database: &Database) {
    let site = told(database).await;
    for number in 1..=5 {
        site.open(number).await;
        end(&site, number, EndReason::RevokedByOperator).await;
    }
    let (due, _) = claim(&site, 0, 1).await;
    // The others are put off with it, and have been tried as often.
    let settling = site
        .store
        .settle_notice(&due[0], Settling::PutOffAll(at(10)), at(0));
    settling.await.unwrap();
    let (again, waiting) = claim(&site, 10, 1).await;
    assert_eq!((again.len(), waiting), (1, 5));
    let dropping = Change::DropNotice {
        notice: Box::new(again[0].clone()),
        hopeless: Some(Hopeless {
            until: NOW,
            attempts: 1,
        }),
        event: EventType::LogoutNoticeDropped,
        problem: "no answer".to_owned(),
    };
    site.open(6).await;
    end(&site, 6, EndReason::RevokedByOperator).await;
    let cause = Cause::system();
    let dropped = site.store.apply(&dropping, &cause, at(10));
    dropped.await.unwrap();
    let query = EventQuery {
        kinds: vec![EventType::LogoutNoticeDropped],
        limit: 9,
        ..EventQuery::default()
    };
    let events = site.store.events(&query).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].after.as_ref().unwrap()["notices"], 5);
    // One that nobody was ever to be told is not hopeless.
    let (left, waiting) = claim(&site, 10, 9).await;
    assert_eq!((left[0].family, waiting), (id(6), 1));
}

/// One page of a browser that is signed in can ask for sign-ins without end.
pub(super) async fn however_many_sign_ins_there_are_they_end_in_time(database: &Database) {
    const MANY: u128 = 6000;
    let site = told(database).await;
    site.change_client(|before| Client {
        backchannel_logout_session_required: true,
        ..before
    })
    .await;
    let session = opened(&site, 1).await;
    let family = brought(&site, 1, session.id, "read").await;
    site.copy(&family, 2..=MANY).await;
    let head = site.head().await;
    ended(&site, session.id).await.unwrap();
    if database.engine() == Engine::Postgres {
        // What one statement has written carries its number.
        for rows in ["family", "change", "revocation", "logout_notice"] {
            let those = match rows {
                "change" | "revocation" => format!("seq > {head}"),
                _ => "true".to_owned(),
            };
            let sql = format!("select count(distinct cmin::text) from {rows} where {those}");
            let statements = database.rows::<(i64,)>(statement(sql)).await;
            assert_eq!(statements, [(1,)], "{rows}");
        }
    }
    let living = "select count(*) from family where revoked_at is null";
    assert_eq!(database.rows::<(i64,)>(living).await, [(0,)]);
    let entries = site.store.revocations_since(head).await.unwrap();
    let values: BTreeSet<Vec<u8>> = entries
        .iter()
        .map(|entry| entry.value.as_bytes().to_vec())
        .collect();
    let expected = (1..=MANY).map(|number| RevokedValue::of(&id(number).to_string()));
    let expected: BTreeSet<_> = expected.map(|value| value.as_bytes().to_vec()).collect();
    assert_eq!(values, expected);
    // The client is told of the latest.
    let (notices, _) = claim(&site, 0, 1000).await;
    let told: Vec<_> = notices.iter().map(|notice| notice.family).collect();
    let latest: Vec<_> = (MANY - 99..=MANY).map(id).collect();
    assert_eq!(told, latest);
    for notice in &notices {
        forget(&site, notice).await;
    }

    // All of a user's at once: where that takes long, nothing is done.
    let family = site.open(MANY + 1).await;
    site.copy(&family, MANY + 2..=2 * MANY).await;
    let head = site.head().await;
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    assert_eq!(site.store.revocations_since(head).await.unwrap().len(), 1);
    let (notices, _) = claim(&site, 0, 1000).await;
    let told: Vec<_> = notices.iter().map(|notice| notice.family).collect();
    let latest: Vec<_> = (2 * MANY - 99..=2 * MANY).map(id).collect();
    assert_eq!(told, latest);
}

/// Where a thief is noticed, the app hears of it, too.
pub(super) async fn the_end_by_theft_is_to_be_told(database: &Database) {
    let site = told(database).await;
    let family = site.open(1).await;
    site.present_all(&family, &[(0, 0), (1, 1)]).await;
    let verdict = site.verdict(refresh_by("thief", &family, 0), at(60_000));
    assert_eq!(verdict.await, Verdict::Reused);
    let code = code(site.grant().await);
    assert!(
        site.store
            .put_code(&hash(2), &code, &[].into())
            .await
            .unwrap()
    );
    let redeem = async |family| {
        let redemption = Redemption {
            family_id: id(family),
            ..redemption(2, &code)
        };
        site.store.redeem_code(&redemption, NOW).await.unwrap()
    };
    assert!(matches!(redeem(2).await, Redeemed::Opened { .. }));
    assert!(matches!(redeem(3).await, Redeemed::Refused(_)));
    // What the client ends itself it knows.
    let own = site.open(4).await;
    assert_eq!(site.verdict(revoke(&own, 0), at(0)).await, Verdict::Ended);
    let (notices, _) = claim(&site, 60_000, 9).await;
    let told: Vec<_> = notices.iter().map(|notice| notice.family).collect();
    assert_eq!(told, [id(1), id(2)]);
}
