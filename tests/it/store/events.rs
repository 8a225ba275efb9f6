//! The audit trail.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change, EventType},
        client::Client,
        event::EventQuery,
        id::{ClientId, EventId},
        user::User,
    },
    store::StoreError,
};
use serde_json::Value;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, client, create, create_user, created, delete, delete_user,
    end_sessions, full_client, key, plain_secret, put, resource, schedule, secret, traces, update,
    update_user, user,
};
use crate::support::database::Database;

/// One change of each kind, in an order in which they succeed, with the event each must leave.
fn one_of_each() -> Vec<(Change, EventType, String)> {
    let at_revision = |revision| Client {
        revision,
        ..full_client("a")
    };
    let resource_id = resource(1).id.to_string();
    let user_id = user(1).id.to_string();
    let rotated = Change::PutKeys {
        schedule: schedule(1, vec![key("k", 0), key("l", 1)]),
        event: EventType::KeyRotated,
    };
    [
        (create(full_client("a")), EventType::ClientCreated, "a"),
        (update(at_revision(1)), EventType::ClientUpdated, "a"),
        (delete(&at_revision(2)), EventType::ClientDeleted, "a"),
        (
            Change::CreateResource(resource(1)),
            EventType::ResourceCreated,
            &resource_id,
        ),
        (
            Change::DeleteResource(resource(1).id),
            EventType::ResourceDeleted,
            &resource_id,
        ),
        (
            put(schedule(0, vec![key("k", 0)])),
            EventType::KeyCreated,
            "signing",
        ),
        (rotated, EventType::KeyRotated, "signing"),
        (create(client("b")), EventType::ClientCreated, "b"),
        (
            Change::RevokeToken {
                jti: "x".to_owned(),
                family: None,
                client_id: Some(ClientId::parse("b").unwrap()),
                token_dies_at: TOKENS_DIE_AT,
                tokens_die_at: TOKENS_DIE_AT,
            },
            EventType::TokenRevoked,
            "x",
        ),
        (
            Change::RevokeClientTokens {
                client_id: ClientId::parse("b").unwrap(),
                tokens_die_at: TOKENS_DIE_AT,
            },
            EventType::ClientTokensRevoked,
            "b",
        ),
        (create_user(user(1)), EventType::UserCreated, &user_id),
        (
            end_sessions(user(1).id),
            EventType::UserSessionsEnded,
            &user_id,
        ),
        (
            update_user(User {
                revision: 2,
                ..user(1)
            }),
            EventType::UserUpdated,
            &user_id,
        ),
        (
            delete_user(&User {
                revision: 3,
                ..user(1)
            }),
            EventType::UserDeleted,
            &user_id,
        ),
    ]
    .map(|(change, event, target)| (change, event, target.to_owned()))
    .into()
}

pub(super) async fn every_change_leaves_an_event_with_its_cause(database: &Database) {
    type Row = (
        i64,
        String,
        String,
        String,
        Option<String>,
        Option<String>,
        Option<String>,
        Option<String>,
    );
    let store = database.open().await;
    let mut expected: Vec<Row> = Vec::new();
    for (at, (change, event, target)) in (1..).zip(one_of_each()) {
        let note = |what: &str| (at % 2 == 0).then(|| format!("{what} {at} ✓"));
        let cause = Cause {
            actor: format!("cli:user-{at}"),
            address: note("address"),
            user_agent: note("agent"),
            request_id: note("request"),
            reason: note("reason"),
        };
        let now = Timestamp::from_millis(at);
        store.apply(&change, &cause, now).await.unwrap();
        expected.push((
            at,
            event.to_string(),
            target,
            cause.actor,
            cause.address,
            cause.user_agent,
            cause.request_id,
            cause.reason,
        ));
    }
    let events: Vec<Row> = database
        .rows(
            "select at, type, target, actor, address, user_agent, request_id, reason \
             from event order by at",
        )
        .await;
    assert_eq!(events, expected);
}

pub(super) async fn an_event_shows_what_was_before_and_after(database: &Database) {
    let store = database.open().await;
    let first = created(&*store, full_client("a")).await;
    let changed = Client {
        client_name: "Other".to_owned(),
        ..first.clone()
    };
    let id = ClientId::parse("a").unwrap();
    let later = |seconds| NOW.plus(Duration::from_secs(seconds));
    let system = Cause::system();
    let change = update(changed);
    store.apply(&change, &system, later(1)).await.unwrap();
    let second = store.client(&id).await.unwrap().unwrap();
    let change = delete(&second);
    store.apply(&change, &system, later(2)).await.unwrap();
    let events: Vec<(Option<String>, Option<String>)> = database
        .rows("select before, after from event order by at")
        .await;
    let read =
        |text: Option<String>| text.map(|text| serde_json::from_str::<Value>(&text).unwrap());
    let events: Vec<_> = events
        .into_iter()
        .map(|(before, after)| (read(before), read(after)))
        .collect();
    let (first, second) = (first.document(), second.document());
    assert_eq!(
        events,
        [
            (None, Some(first.clone())),
            (Some(first), Some(second.clone())),
            (Some(second), None),
        ]
    );
}

pub(super) async fn events_hold_no_secret_and_no_hash(database: &Database) {
    let store = database.open().await;
    for (change, ..) in one_of_each() {
        apply(&*store, change).await.unwrap();
    }
    let events: Vec<(String,)> = database
        .rows(
            "select type || target || actor || coalesce(address, '') || coalesce(user_agent, '') || \
             coalesce(request_id, '') || coalesce(reason, '') || coalesce(before, '') || \
             coalesce(after, '') from event",
        )
        .await;
    let text: String = events.into_iter().map(|(text,)| text).collect();
    let lower = text.to_lowercase();
    assert!(text.contains(&secret(1).id.to_string()));
    for number in [1, 2] {
        let hash = secret(number).hash;
        let hash = hash.as_bytes();
        let hex = hash
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert!(!text.contains(&plain_secret(number)));
        assert!(!lower.contains(&hex));
        assert!(!text.contains(&STANDARD_NO_PAD.encode(hash)));
        assert!(!text.contains(&URL_SAFE_NO_PAD.encode(hash)));
        assert!(!text.contains(&format!("{hash:?}")));
    }
}

pub(super) async fn a_failed_change_leaves_nothing(database: &Database) {
    let store = database.open().await;
    // The first key is written before the second one fails.
    let twice_at_once = put(schedule(0, vec![key("a", 0), key("b", 0)]));
    // The client and one secret are written before a secret fails that somebody else has.
    created(
        &*store,
        Client {
            secrets: vec![secret(2)],
            ..client("other")
        },
    )
    .await;
    let anothers_secret = create(full_client("a"));
    let before = traces(database).await;
    for change in [twice_at_once, anothers_secret] {
        let result = apply(&*store, change).await;
        assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
    }
    assert_eq!(traces(database).await, before);
    let rows: Vec<(i64, i64, i64, i64)> = database
        .rows(
            "select (select count(*) from key_schedule), (select count(*) from sealed_key), \
             (select count(*) from client), (select count(*) from client_secret)",
        )
        .await;
    assert_eq!(rows, [(0, 0, 1, 1)]);
}

pub(super) async fn events_are_read_in_the_order_of_commits(database: &Database) {
    let store = database.open().await;
    for (change, _, _) in one_of_each() {
        apply(&*store, change).await.unwrap();
    }
    let read = async |query: EventQuery| store.events(&query).await.unwrap();
    let all = read(EventQuery {
        limit: 99,
        ..EventQuery::default()
    })
    .await;
    let kinds: Vec<&str> = all.iter().map(|event| event.kind.as_str()).collect();
    let expected: Vec<&str> = one_of_each()
        .iter()
        .map(|(_, event, _)| event.as_str())
        .collect();
    assert_eq!(kinds, expected);
    // In pages, forwards and backwards, without one left out or shown twice.
    for latest_first in [false, true] {
        let mut pages = Vec::new();
        let mut after = None;
        loop {
            let query = EventQuery {
                after,
                latest_first,
                limit: 3,
                ..EventQuery::default()
            };
            let page = read(query).await;
            assert!(page.len() <= 3);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            pages.extend(page);
        }
        if latest_first {
            pages.reverse();
        }
        assert_eq!(pages, all);
    }
    let about_b = read(EventQuery {
        subject: Some("b".to_owned()),
        limit: 99,
        ..EventQuery::default()
    });
    assert_eq!(about_b.await.len(), 2);
    let created = read(EventQuery {
        kinds: vec![EventType::ClientCreated],
        after: Some(all[0].id),
        limit: 99,
        ..EventQuery::default()
    });
    let created = created.await;
    assert_eq!(created.len(), 1);
    assert_eq!(created[0].target, "b");
    // One that is not there any more lay before all others.
    let query = EventQuery {
        after: Some(EventId::from_uuid(uuid::Uuid::nil())),
        limit: 99,
        ..EventQuery::default()
    };
    assert_eq!(read(query).await, all);
}
