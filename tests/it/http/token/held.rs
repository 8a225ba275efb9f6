//! Families that somebody holds in the database and does not let go, as a node that has halted.

use std::time::Duration;

use countersign::{admin::client::ClientMetadata, clock::ManualClock, clock::Timestamp};
use futures_util::future::join_all;
use reqwest::Method;
use sqlx::{Connection as _, PgConnection};

use super::{Refusal, refused};
use crate::support::{
    database::{Database, Engine, statement},
    process::Stopwatch,
    server::{Setup, answer},
    sign_in::{by, public, refresh},
    soon,
};

const UNAVAILABLE: Refusal = (503, "temporarily_unavailable", "database");

/// Whoever presents a token that was spent ends the family at once.
fn strict() -> ClientMetadata {
    ClientMetadata {
        refresh_policy: Some("strict".to_owned()),
        ..public()
    }
}

/// All that families and their ends are written into.
const TABLES: [&str; 5] = ["family", "event", "change", "change_head", "revocation"];

/// One row is held. Time is real, as it is the database that gives up.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_of_a_family_that_somebody_holds_is_put_off_and_the_others_go_on() {
    let database = Database::create(Engine::Postgres).await;
    let setup = Setup::new().at(database.url()).client("spa", strict());
    let server = setup.start().await;
    let spa = server.other("spa");
    let ada = server.user("ada").await;
    let held = server.sign_in(spa, ada).await;
    let stuck = server.sign_in(spa, ada).await;
    let ended = server.sign_in(spa, ada).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(server.sign_in(spa, ada).await);
    }
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    let lock = format!(
        "begin; select id from family where id in ('{}', '{}') for update",
        held.family, stuck.family
    );
    sqlx::raw_sql(statement(lock))
        .execute(&mut holder)
        .await
        .unwrap();
    let of_both = async || {
        let (held, stuck) = (held.family, stuck.family);
        (server.family(held).await, server.family(stuck).await)
    };
    let before = of_both().await;

    // Alone it waits for as long as the row may take, and all who come meanwhile make the next batch.
    let begun = Stopwatch::start();
    let alone = refused(server.by(spa, &refresh(&held.refresh_token)), UNAVAILABLE);
    let together = async {
        soon(async {
            let waiting = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
            while database.rows::<(i64,)>(waiting).await == [(0,)] {}
        })
        .await;
        let again = [&refresh(&held.refresh_token)[..], &[("scope", "read")]].concat();
        let again = refused(server.by(spa, &again), UNAVAILABLE);
        let revoke = |token| {
            let request = server.request(Method::POST, "/oauth2/revoke");
            by(request, spa, &[("token", token)])
        };
        let end = answer(revoke(&ended.refresh_token));
        let not_ended = refused(revoke(&stuck.refresh_token), UNAVAILABLE);
        let others = others
            .iter()
            .map(|other| server.refresh(spa, &other.refresh_token));
        tokio::join!(again, not_ended, end, join_all(others))
    };
    let (alone, (again, not_ended, revoked, refreshed)) = tokio::join!(alone, together);
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    for refusal in [alone, again, not_ended] {
        assert_eq!(refusal.header("retry-after"), Some("5"));
    }
    assert_eq!(revoked.status, 200);
    assert!(server.family(ended.family).await.revoked_at.is_some());
    for (other, answer) in others.iter().zip(&refreshed) {
        let next = answer.refresh_token();
        assert_eq!(server.family(other.family).await.counter, 1);
        server.refresh(spa, &next).await.refresh_token();
    }
    assert_eq!(of_both().await, before);
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    // Were it spent, it would end its family.
    for signed_in in [held, stuck] {
        let next = server.refresh(spa, &signed_in.refresh_token).await;
        let next = next.refresh_token();
        server.refresh(spa, &next).await.refresh_token();
    }
}

/// There is one writer at a time: whoever writes holds everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_beside_a_writer_who_does_not_end_is_put_off() {
    let database = Database::create(Engine::Sqlite).await;
    let clock = ManualClock::new(Timestamp::from_seconds(1_800_000_000));
    let setup = Setup::new().at(database.url()).client("spa", strict());
    let server = setup.clock(clock.clone()).start().await;
    let spa = server.other("spa");
    let ada = server.user("ada").await;
    let signed_in = server.sign_in(spa, ada).await;
    let before = database.dump(&TABLES).await;
    let lock = database.lock().await;
    let refusal = async {
        let mut refusal = std::pin::pin!(refused(
            server.by(spa, &refresh(&signed_in.refresh_token)),
            UNAVAILABLE
        ));
        loop {
            tokio::select! {
                refusal = &mut refusal => return refusal,
                () = tokio::task::yield_now() => clock.advance(Duration::from_millis(1)),
            }
        }
    };
    let refusal = soon(refusal).await;
    assert_eq!(refusal.header("retry-after"), Some("5"));
    assert_eq!(database.dump(&TABLES).await, before);
    drop(lock);
    let next = server.refresh(spa, &signed_in.refresh_token).await;
    server
        .refresh(spa, &next.refresh_token())
        .await
        .refresh_token();
}
