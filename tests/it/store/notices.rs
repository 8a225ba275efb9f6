//! What clients are to be told when their users have been signed out.

use countersign::{
    domain::{
        change::{Change, EventType},
        client::Client,
        event::EventQuery,
        family::{EndReason, RefreshPolicy},
        logout_notice::LogoutNotice,
    },
    store::StoreError,
};

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, end_sessions},
    sign_in::{Site, at, id},
};
use crate::support::database::Database;

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

/// What is taken on so many milliseconds after now, for a minute, and how many wait.
async fn claim(site: &Site<'_>, millis: i64, limit: u32) -> (Vec<LogoutNotice>, u64) {
    let claiming = site
        .store
        .claim_notices(limit, at(millis + 60_000), at(millis));
    let claimed = claiming.await.unwrap();
    (claimed.notices, claimed.waiting)
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
    assert_eq!(families, [Some(id(1)), Some(id(2))]);
    for notice in &notices {
        assert_eq!(notice.client_id, site.client);
        assert_eq!(notice.subject, site.user);
        assert_eq!((notice.attempts, notice.created_at), (1, NOW));
        site.store.put_off_notice(notice.id, None).await.unwrap();
    }
    assert_eq!(claim(&site, 100_000, 9).await, (Vec::new(), 0));
    // All at once: the one that is left, without its name.
    apply(&*site.store, end_sessions(site.user)).await.unwrap();
    let (notices, _) = claim(&site, 0, 9).await;
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0].family, None);
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
    let (lease, now) = (at(60_000), NOW);
    let (first, second) = tokio::join!(
        site.store.claim_notices(3, lease, now),
        other.claim_notices(3, lease, now)
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
    // One is put off, one is dropped, with its event.
    let putting_off = site.store.put_off_notice(again[0].id, Some(at(90_000)));
    putting_off.await.unwrap();
    let (due, _) = claim(&site, 90_000, 9).await;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id, again[0].id);
    let drop = || Change::DropNotice {
        notice: Box::new(due[0].clone()),
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
