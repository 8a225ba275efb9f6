//! Users, and how their sessions end.

use std::{collections::HashSet, time::Duration};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change},
        profile::Profile,
        revocation::{Revocation, RevocationKind, RevokedValue},
        user::{User, Username},
    },
    store::{Store, StoreError},
};
use serde_json::json;
use tokio::task::JoinSet;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, assert_conflict, create_user, created_user, delete_user,
    end_sessions, password_hash, traces, update_user, user,
};
use crate::support::database::Database;

/// The second after [`NOW`].
const NEXT_SECOND: Timestamp = Timestamp::from_millis(1_700_000_001_000);

fn name(text: &str) -> Username {
    Username::parse(text).unwrap()
}

/// A user with everything it can have.
fn full_user(number: u128) -> User {
    let claims = json!({ "ä\"'": [1, null, { "\u{0}": "🦀 $1 ? %" }], "n": 1.5 });
    let profile = json!({ "name": "Ünï '\"\\ $1 🦀", "address": { "formatted": "a\nb" } });
    User {
        username: name("Ünï 日本 🦀 '\"\\ % _ $1 ?"),
        password_hash: Some(password_hash(number)),
        roles: vec!["a b".to_owned(), "ü'\"".to_owned()],
        claims: claims.as_object().unwrap().clone(),
        profile: Profile::parse(profile.as_object().unwrap().clone()).unwrap(),
        disabled: true,
        demo: true,
        password_changed_at: Some(NOW),
        ..user(number)
    }
}

/// The entries of revocation: kind, value, from when on tokens are spared, and their end.
async fn entries(store: &dyn Store) -> Vec<(RevokedValue, Option<Timestamp>, Option<Timestamp>)> {
    let of_user = |entry: Revocation| {
        assert_eq!(entry.kind, RevocationKind::Sub);
        (entry.value, entry.not_before, entry.expires_at)
    };
    let read = store.revocations_since(0).await.unwrap();
    read.into_iter().map(of_user).collect()
}

pub(super) async fn a_user_is_read_back_as_it_was_put(database: &Database) {
    let store = database.open().await;
    let mut epochs = HashSet::new();
    for user in [user(1), full_user(2)] {
        apply(&*store, create_user(user.clone())).await.unwrap();
        let read = store.user(user.id).await.unwrap().unwrap();
        assert!(read.session_epoch >= 0);
        assert!(epochs.insert(read.session_epoch));
        let session_epoch = read.session_epoch;
        let expected = User {
            revision: 1,
            session_epoch,
            ..user.clone()
        };
        assert_eq!(read, expected);
        let by_name = store.user_by_name(user.username.key()).await.unwrap();
        assert_eq!(by_name, Some(expected));
    }
    assert_eq!(store.user(user(3).id).await.unwrap(), None);
    let unknown = store.user_by_name(name("user-3").key()).await.unwrap();
    assert_eq!(unknown, None);
    // A new user holds no token, so that nothing is revoked.
    assert_eq!(entries(&*store).await, []);
}

pub(super) async fn users_are_listed_by_id_in_parts(database: &Database) {
    let store = database.open().await;
    // The last one is the last that both engines must order: the highest bit is no sign.
    for number in [3, 1, u128::MAX, 2, 1 << 127] {
        created_user(&*store, user(number)).await;
    }
    let mut listed = Vec::new();
    loop {
        let after = listed.last().map(|user: &User| user.id);
        let part = store.users(after, 2).await.unwrap();
        if part.is_empty() {
            break;
        }
        assert!(part.len() <= 2);
        listed.extend(part);
    }
    let ids: Vec<u128> = listed.iter().map(|user| user.id.uuid().as_u128()).collect();
    assert_eq!(ids, [1, 2, 3, 1 << 127, u128::MAX]);
}

pub(super) async fn a_name_belongs_to_one_user_however_it_is_written(database: &Database) {
    let store = database.open().await;
    let named = |number, text| User {
        username: name(text),
        ..user(number)
    };
    created_user(&*store, named(1, "Ada@example.com")).await;
    let other = created_user(&*store, named(2, "bob")).await;
    for taken in ["Ada@example.com", "ADA@EXAMPLE.COM", "ａｄａ@example.com"] {
        assert_conflict(database, &*store, create_user(named(3, taken))).await;
        let renamed = User {
            username: name(taken),
            ..other.clone()
        };
        assert_conflict(database, &*store, update_user(renamed)).await;
        let found = store.user_by_name(name(taken).key()).await.unwrap();
        assert_eq!(found.unwrap().id, user(1).id);
    }
    // Its own name in other letters is free for a user, and the old one for all others.
    let renamed = User {
        username: name("Robert"),
        ..other.clone()
    };
    apply(&*store, update_user(renamed)).await.unwrap();
    let renamed = User {
        username: name("ROBERT"),
        ..store.user(other.id).await.unwrap().unwrap()
    };
    apply(&*store, update_user(renamed)).await.unwrap();
    created_user(&*store, named(3, "Bob")).await;
}

pub(super) async fn of_32_concurrent_users_of_one_name_one_is_created(database: &Database) {
    let store = database.open().await;
    let mut writers = JoinSet::new();
    for number in 1..=32 {
        let store = store.clone();
        let spelling = ["straße", "STRASSE", "Straße", "ｓｔｒａｓｓｅ"][number % 4];
        let user = User {
            username: name(spelling),
            ..user(number as u128)
        };
        writers.spawn(async move {
            match apply(&*store, create_user(user)).await {
                Ok(_) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let created = writers.join_all().await.into_iter().filter(|won| *won);
    assert_eq!(created.count(), 1);
    assert_eq!(store.users(None, 99).await.unwrap().len(), 1);
    assert_eq!(traces(database).await, (1, 1, 1, 0));
}

pub(super) async fn a_stale_revision_of_a_user_conflicts_and_changes_nothing(database: &Database) {
    let store = database.open().await;
    let stale = created_user(&*store, full_user(1)).await;
    apply(&*store, update_user(stale.clone())).await.unwrap();
    let current = store.users(None, 99).await.unwrap();
    let too_far = User {
        revision: 3,
        ..user(1)
    };
    let unknown = User {
        revision: 1,
        ..user(2)
    };
    for other in [stale, too_far, unknown] {
        assert_conflict(database, &*store, delete_user(&other)).await;
        assert_conflict(database, &*store, update_user(other)).await;
    }
    assert_conflict(database, &*store, create_user(user(1))).await;
    assert_conflict(database, &*store, end_sessions(user(2).id)).await;
    assert_eq!(store.users(None, 99).await.unwrap(), current);
}

pub(super) async fn each_change_of_a_user_adds_one_to_the_revision(database: &Database) {
    let store = database.open().await;
    let mut current = created_user(&*store, user(1)).await;
    assert_eq!(current.revision, 1);
    let epoch = current.session_epoch;
    for revision in 2..5 {
        let later = current.updated_at.plus(Duration::from_secs(1));
        let change = update_user(User {
            // Not for the caller to say.
            created_at: later,
            session_epoch: 7,
            tokens_not_before: Some(later),
            roles: vec![revision.to_string()],
            ..current.clone()
        });
        let applied = store.apply(&change, &Cause::system(), later).await.unwrap();
        assert_eq!(applied.revision, revision);
        current = store.user(current.id).await.unwrap().unwrap();
        assert_eq!(current.revision, revision);
        assert_eq!((current.created_at, current.updated_at), (NOW, later));
        // Sessions go on.
        assert_eq!(current.session_epoch, epoch);
        assert_eq!(current.tokens_not_before, None);
    }
    assert_eq!(entries(&*store).await, []);
}

pub(super) async fn of_a_concurrent_update_and_deletion_of_a_user_one_wins(database: &Database) {
    let store = database.open().await;
    for round in 1..30 {
        let seen = created_user(&*store, user(round)).await;
        let (updated, deleted) = tokio::join!(
            apply(&*store, update_user(seen.clone())),
            apply(&*store, delete_user(&seen)),
        );
        let current = store.user(seen.id).await.unwrap();
        assert_eq!(updated.is_ok(), current.is_some());
        assert_eq!(deleted.is_ok(), current.is_none());
    }
}

pub(super) async fn ending_the_sessions_of_a_user_draws_an_epoch_and_writes_one_entry(
    database: &Database,
) {
    let store = database.open().await;
    let before = created_user(&*store, user(1)).await;
    let other = created_user(&*store, user(2)).await;
    let value = RevokedValue::of(&before.id.to_string());
    let expected = [(value, Some(NEXT_SECOND), Some(TOKENS_DIE_AT))];
    apply(&*store, end_sessions(before.id)).await.unwrap();
    let ended = store.user(before.id).await.unwrap().unwrap();
    assert_ne!(ended.session_epoch, before.session_epoch);
    assert_eq!(ended.tokens_not_before, Some(NEXT_SECOND));
    assert_eq!(entries(&*store).await, expected);
    // Whoever looked at the user before must look again before changing it.
    assert_conflict(database, &*store, update_user(before)).await;
    // A new password ends them, too, when its change says so.
    let Change::PutUser {
        user,
        expected: at,
        event,
        tokens_die_at,
        ..
    } = update_user(User {
        password_hash: Some(password_hash(1)),
        ..ended.clone()
    })
    else {
        unreachable!()
    };
    let change = Change::PutUser {
        user,
        expected: at,
        event,
        ends_sessions: true,
        tokens_die_at,
    };
    let later = NOW.plus(Duration::from_secs(9));
    store.apply(&change, &Cause::system(), later).await.unwrap();
    let changed = store.user(ended.id).await.unwrap().unwrap();
    assert_ne!(changed.session_epoch, ended.session_epoch);
    let bound = Some(NEXT_SECOND.plus(Duration::from_secs(9)));
    assert_eq!(changed.tokens_not_before, bound);
    let expected = [(value, bound, Some(TOKENS_DIE_AT))];
    assert_eq!(entries(&*store).await, expected);
    assert_eq!(store.user(other.id).await.unwrap(), Some(other));
}

pub(super) async fn a_disabled_user_has_every_token_revoked_until_it_is_enabled(
    database: &Database,
) {
    let store = database.open().await;
    let enabled = created_user(&*store, user(1)).await;
    let value = RevokedValue::of(&enabled.id.to_string());
    let unbounded = [(value, None, Some(TOKENS_DIE_AT))];
    let mut epochs = HashSet::from([enabled.session_epoch]);
    let switched = |disabled, user: User| User { disabled, ..user };
    let read = async || store.user(enabled.id).await.unwrap().unwrap();

    let change = update_user(switched(true, enabled.clone()));
    apply(&*store, change).await.unwrap();
    assert_eq!(entries(&*store).await, unbounded);
    assert!(epochs.insert(read().await.session_epoch));
    // Ending the sessions as well bounds nothing, nor does another change of it.
    apply(&*store, end_sessions(enabled.id)).await.unwrap();
    assert!(epochs.insert(read().await.session_epoch));
    apply(&*store, update_user(read().await)).await.unwrap();
    assert_eq!(entries(&*store).await, unbounded);

    let change = update_user(switched(false, read().await));
    apply(&*store, change).await.unwrap();
    let again = read().await;
    assert!(epochs.insert(again.session_epoch));
    assert_eq!(again.tokens_not_before, Some(NEXT_SECOND));
    let bounded = [(value, Some(NEXT_SECOND), Some(TOKENS_DIE_AT))];
    assert_eq!(entries(&*store).await, bounded);
}

pub(super) async fn a_removed_user_leaves_an_entry_until_its_tokens_are_dead(database: &Database) {
    let store = database.open().await;
    let doomed = created_user(&*store, full_user(1)).await;
    apply(&*store, delete_user(&doomed)).await.unwrap();
    assert_eq!(store.user(doomed.id).await.unwrap(), None);
    let value = RevokedValue::of(&doomed.id.to_string());
    let unbounded = [(value, None, Some(TOKENS_DIE_AT))];
    assert_eq!(entries(&*store).await, unbounded);
    // Its name is free, for somebody of another id and another epoch.
    let successor = User {
        username: doomed.username.clone(),
        ..user(2)
    };
    let successor = created_user(&*store, successor).await;
    assert_ne!(successor.session_epoch, doomed.session_epoch);
    assert_eq!(entries(&*store).await, unbounded);
}

pub(super) async fn events_about_users_hold_no_hash(database: &Database) {
    let store = database.open().await;
    let first = created_user(&*store, full_user(1)).await;
    let changed = User {
        password_hash: Some(password_hash(2)),
        ..first.clone()
    };
    apply(&*store, update_user(changed)).await.unwrap();
    let second = store.user(first.id).await.unwrap().unwrap();
    apply(&*store, delete_user(&second)).await.unwrap();
    let events: Vec<(String,)> = database
        .rows("select coalesce(before, '') || coalesce(after, '') from event")
        .await;
    let text: String = events.into_iter().map(|(text,)| text).collect();
    assert!(text.contains("has_password"));
    assert!(!text.contains("argon2"));
    for shown in [&first, &second] {
        let shown = format!("{shown:?}{}", shown.document());
        assert!(!shown.contains("argon2"), "{shown}");
    }
}

pub(super) async fn a_user_row_that_cannot_be_read_is_named(database: &Database) {
    let store = database.open().await;
    let user = created_user(&*store, user(1)).await;
    for (sql, bad) in [
        ("update end_user set claims = '[]'", "claims"),
        ("update end_user set roles = '[1]', claims = '{}'", "roles"),
        (
            "update end_user set username = ' x', roles = '[]'",
            "username",
        ),
        (
            "update end_user set username = 'x', profile = '1'",
            "profile",
        ),
    ] {
        database.execute(sql).await;
        for result in [
            store.user(user.id).await.map(drop),
            store.user_by_name(user.username.key()).await.map(drop),
            store.users(None, 9).await.map(drop),
        ] {
            let Err(StoreError::Corrupt { table, column, id }) = result else {
                panic!("{sql}: {result:?}");
            };
            assert_eq!((table, column), ("end_user", bad));
            assert_eq!(id, user.id.to_string());
        }
    }
    // Others are not affected by what nodes read, which is everything but users.
    assert!(store.snapshot().await.is_ok());
}

pub(super) async fn a_demo_user_is_found_by_whatever_name(database: &Database) {
    let store = database.open().await;
    created_user(&*store, user(1)).await;
    assert_eq!(store.demo_user().await.unwrap(), None);
    let demo = created_user(&*store, full_user(2)).await;
    assert_eq!(store.demo_user().await.unwrap(), Some(demo.id));
    apply(&*store, delete_user(&demo)).await.unwrap();
    assert_eq!(store.demo_user().await.unwrap(), None);
}
