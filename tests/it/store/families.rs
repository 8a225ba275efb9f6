//! Families: how they are listed, how all of a user or client end at once, and how they are deleted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change},
        claims::RequestedClaims,
        code::{AuthorizationCode, ChallengeSession, Redeemed, Redemption},
        family::{
            EndReason, Family, FamilyQuery, Grant, Intent, Outcome, Presentation, Refusal,
            Standing, Terms, Turn, Verdict,
        },
        id::{ClientId, FamilyId, UserId},
        resource::ResourceUri,
        scope::Scope,
        secret::SecretHash,
    },
    store::{Bounds, Step, Store, Swept},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, client, created, created_user, delete_user, end_sessions, traces,
    user,
};
use crate::support::database::{Database, Engine};

const DAY: Duration = Duration::from_hours(24);

/// How long a family here lives without being refreshed.
const IDLE: Duration = Duration::from_hours(7 * 24);

/// How long it lives at most.
const LIFE: Duration = Duration::from_hours(30 * 24);

const TERMS: Terms = Terms {
    mac_version: 1,
    idle: IDLE,
    tokens_die_at: TOKENS_DIE_AT,
};

fn id(number: u128) -> FamilyId {
    FamilyId::from_uuid(Uuid::from_u128(number))
}

fn days(number: u32) -> Timestamp {
    NOW.plus(DAY * number)
}

fn one_more(moment: Timestamp) -> Timestamp {
    moment.plus(Duration::from_millis(1))
}

/// What user `subject` grants to client `at`, both as they are now.
async fn grant(store: &dyn Store, subject: u128, at: &str) -> Grant {
    let user = UserId::from_uuid(Uuid::from_u128(subject));
    let user = store.user(user).await.unwrap().unwrap();
    let client_id = ClientId::parse(at).unwrap();
    let client = store.client(&client_id).await.unwrap().unwrap();
    Grant {
        client_id,
        client_epoch: client.session_epoch,
        subject: user.id,
        user_epoch: user.session_epoch,
        session_id: None,
        scope: Scope::parse("read write").unwrap(),
        resources: vec![ResourceUri::parse("urn:a").unwrap()],
        auth_time: NOW,
        amr: vec!["pwd".to_owned()],
        dpop_jkt: None,
        claims: RequestedClaims::default(),
    }
}

/// Signs a user in at a client: a code, and the family it is exchanged for.
async fn opened(
    store: &dyn Store,
    number: u128,
    subject: u128,
    at: &str,
    now: Timestamp,
) -> Family {
    let hash = SecretHash::of(&format!("code {number}"));
    let code = AuthorizationCode {
        grant: grant(store, subject, at).await,
        redirect_uri: None,
        code_challenge: None,
        nonce: None,
        expires_at: now.plus(Duration::from_mins(1)),
        family_id: None,
    };
    assert!(store.put_code(&hash, &code, &[].into()).await.unwrap());
    let redemption = Redemption {
        hash,
        client_id: ClientId::parse(at).unwrap(),
        code_challenge: None,
        redirect_uri: None,
        dpop_jkt: None,
        scope: None,
        resources: Vec::new(),
        family_id: id(number),
        for_session: false,
        lifetime: LIFE,
        terms: TERMS,
        cause: Cause::default(),
    };
    match store.redeem_code(&redemption, now).await.unwrap() {
        Redeemed::Opened { family, .. } => *family,
        refused @ Redeemed::Refused(_) => panic!("{refused:?}"),
    }
}

/// Clients `a` and `b`, and users 1 and 2.
async fn parties(store: &dyn Store) {
    for id in ["a", "b"] {
        created(store, client(id)).await;
    }
    for number in [1, 2] {
        created_user(store, user(number)).await;
    }
}

fn presented(family: FamilyId, counter: i64, at: &str, intent: Intent) -> Presentation {
    Presentation {
        family,
        counter,
        mac_version: TERMS.mac_version,
        client_id: ClientId::parse(at).unwrap(),
        dpop_jkt: None,
        intent,
        cause: Cause::default(),
    }
}

/// Presents the token of a counter at client `a`.
async fn refreshed(store: &dyn Store, family: FamilyId, counter: i64, now: Timestamp) -> Verdict {
    let intent = Intent::Refresh {
        scope: None,
        resources: Vec::new(),
        offered: vec![ResourceUri::parse("urn:a").unwrap()],
    };
    let presented = [presented(family, counter, "a", intent)];
    match &store.rotate(&presented, &TERMS, now).await.unwrap()[..] {
        [Outcome::Judged { verdict, .. }] => *verdict,
        [Outcome::Unknown] => Verdict::Refused(Refusal::Unknown),
        other => panic!("{other:?}"),
    }
}

async fn ended(store: &dyn Store, family: FamilyId, now: Timestamp) {
    let change = Change::EndFamily {
        family,
        reason: EndReason::RevokedByOperator,
        tokens_die_at: TOKENS_DIE_AT,
    };
    store.apply(&change, &Cause::system(), now).await.unwrap();
}

/// The numbers of the families that a query finds.
async fn listed(store: &dyn Store, query: FamilyQuery) -> Vec<u128> {
    let found = store.families(&query).await.unwrap();
    for (family, standing) in &found {
        let alone = store.family(family.id).await.unwrap();
        assert_eq!(alone, Some((family.clone(), standing.clone())));
    }
    let number = |(family, _): &(Family, Standing)| family.id.uuid().as_u128();
    found.iter().map(number).collect()
}

/// The numbers of all that are left.
async fn left(store: &dyn Store) -> Vec<u128> {
    let all = FamilyQuery {
        limit: 1000,
        ..FamilyQuery::default()
    };
    let mut left = listed(store, all).await;
    left.reverse();
    left
}

pub(super) async fn families_are_listed_the_latest_first_by_user_and_client(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    for (number, subject, at) in [
        (5, 1, "a"),
        (2, 1, "b"),
        (4, 2, "a"),
        (1, 2, "b"),
        (3, 1, "a"),
    ] {
        opened(&*store, number, subject, at, NOW).await;
    }
    let by = |subject: Option<u128>, at: Option<&str>| FamilyQuery {
        subject: subject.map(|number| UserId::from_uuid(Uuid::from_u128(number))),
        client_id: at.map(|at| ClientId::parse(at).unwrap()),
        limit: 9,
        ..FamilyQuery::default()
    };
    assert_eq!(listed(&*store, by(None, None)).await, [5, 4, 3, 2, 1]);
    assert_eq!(listed(&*store, by(Some(1), None)).await, [5, 3, 2]);
    assert_eq!(listed(&*store, by(None, Some("a"))).await, [5, 4, 3]);
    assert_eq!(listed(&*store, by(Some(2), Some("b"))).await, [1]);
    assert_eq!(listed(&*store, by(Some(3), None)).await, [0; 0]);
    assert_eq!(listed(&*store, by(Some(1), Some("c"))).await, [0; 0]);
}

pub(super) async fn a_list_of_families_goes_on_where_it_ended(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    for number in 1..=5 {
        opened(&*store, number, 1, "a", NOW).await;
    }
    let queries: [fn() -> FamilyQuery; 3] = [
        FamilyQuery::default,
        || FamilyQuery {
            subject: Some(UserId::from_uuid(Uuid::from_u128(1))),
            ..FamilyQuery::default()
        },
        || FamilyQuery {
            client_id: Some(ClientId::parse("a").unwrap()),
            ..FamilyQuery::default()
        },
    ];
    for query in queries {
        let mut after = None;
        let mut parts = Vec::new();
        loop {
            let part = FamilyQuery {
                after,
                limit: 2,
                ..query()
            };
            let part = listed(&*store, part).await;
            let Some(last) = part.last() else { break };
            after = Some(id(*last));
            parts.push(part);
        }
        assert_eq!(parts, [&[5, 4][..], &[3, 2], &[1]]);
    }
}

pub(super) async fn families_that_have_ended_are_left_out_on_demand(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    for number in [1, 2] {
        opened(&*store, number, 1, "a", NOW).await;
    }
    opened(&*store, 3, 2, "a", NOW).await;
    opened(&*store, 4, 1, "b", NOW).await;
    let latest = opened(&*store, 5, 1, "a", days(1)).await;
    ended(&*store, id(2), NOW).await;
    let living = async |living_at| {
        let query = FamilyQuery {
            living_at: Some(living_at),
            limit: 9,
            ..FamilyQuery::default()
        };
        listed(&*store, query).await
    };
    assert_eq!(living(NOW).await, [5, 4, 3, 1]);
    let end = NOW.plus(IDLE);
    assert_eq!(
        living(end.minus(Duration::from_millis(1))).await,
        [5, 4, 3, 1]
    );
    assert_eq!(living(end).await, [5]);
    let client_id = ClientId::parse("b").unwrap();
    let at_client = Change::RevokeClientTokens {
        client_id,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*store, at_client).await.unwrap();
    assert_eq!(living(NOW).await, [5, 3, 1]);
    apply(&*store, end_sessions(latest.grant.subject))
        .await
        .unwrap();
    assert_eq!(living(NOW).await, [3]);
    let of_user = FamilyQuery {
        subject: Some(latest.grant.subject),
        limit: 9,
        ..FamilyQuery::default()
    };
    assert_eq!(listed(&*store, of_user).await, [5, 4, 2, 1]);
}

pub(super) async fn a_family_shows_what_has_become_of_its_client_and_user(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    let family = opened(&*store, 1, 1, "a", NOW).await;
    let standing = async || store.family(family.id).await.unwrap().unwrap().1;
    assert_eq!(standing().await.refusal(&family.grant), None);
    apply(&*store, end_sessions(family.grant.subject))
        .await
        .unwrap();
    let refusal = standing().await.refusal(&family.grant);
    assert_eq!(refusal, Some(Refusal::UserSessionsEnded));
    let user = store.user(family.grant.subject).await.unwrap().unwrap();
    apply(&*store, delete_user(&user)).await.unwrap();
    assert_eq!(standing().await.user, None);
}

pub(super) async fn codes_and_unfinished_sign_ins_are_swept_when_they_are_over(
    database: &Database,
) {
    let store = database.open().await;
    parties(&*store).await;
    for number in 1..=3 {
        opened(&*store, number, 1, "a", NOW).await;
        let session = ChallengeSession {
            client_id: ClientId::parse("a").unwrap(),
            client_epoch: 0,
            username: "x".to_owned(),
            code_challenge: String::new(),
            scope: Scope::default(),
            resources: Vec::new(),
            dpop_jkt: None,
            failures: 0,
            expires_at: NOW.plus(Duration::from_secs(60 + u64::from(number == 3))),
            proved: None,
        };
        let hash = SecretHash::of(&format!("session {number}"));
        store.put_challenge(&hash, &session).await.unwrap();
    }
    let bounds = Bounds {
        now: NOW.plus(Duration::from_mins(1)),
        changes_before: Timestamp::from_millis(0),
        events_before: None,
        families_before: NOW,
    };
    let before = Bounds {
        now: Timestamp::from_millis(bounds.now.millis() - 1),
        ..bounds
    };
    assert_eq!(store.sweep(&before, 2).await.unwrap(), Swept::default());
    let swept = |codes, challenges| Swept {
        codes,
        challenges,
        ..Swept::default()
    };
    let first = store.sweep(&bounds, 2).await.unwrap();
    assert_eq!(first, swept(2, 2));
    assert!(first.is_full(2));
    assert_eq!(store.sweep(&bounds, 2).await.unwrap(), swept(1, 0));
    assert_eq!(store.sweep(&bounds, 2).await.unwrap(), Swept::default());
    let living = SecretHash::of("session 3");
    let client = ClientId::parse("a").unwrap();
    let taken = store.take_challenge(&living, &client, bounds.now).await;
    assert!(taken.unwrap().is_some());
    assert_eq!(left(&*store).await, [1, 2, 3]);
}

pub(super) async fn families_are_swept_when_they_expired_long_ago(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    for number in 1..=3 {
        opened(&*store, number, 1, "a", NOW).await;
    }
    opened(&*store, 4, 1, "a", one_more(NOW)).await;
    let bounds = |families_before| Bounds {
        now: NOW,
        changes_before: Timestamp::from_millis(0),
        events_before: None,
        families_before,
    };
    let swept = async |before, limit| store.sweep(&bounds(before), limit).await.unwrap().families;
    let end = NOW.plus(LIFE);
    assert_eq!(swept(Timestamp::from_millis(end.millis() - 1), 2).await, 0);
    assert_eq!(swept(end, 2).await, 2);
    assert_eq!(swept(end, 2).await, 1);
    assert_eq!(swept(end, 2).await, 0);
    assert_eq!(left(&*store).await, [4]);
}

pub(super) async fn the_walk_deletes_what_has_ended_long_ago_and_nothing_else(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    for number in 1..=7 {
        opened(&*store, number, 1, "a", NOW).await;
    }
    // 2 lives; 3 was ended long ago, 4 just now; 5 was not refreshed, nor was 6 since its user's
    // sessions were ended; 7 was refreshed later than all others.
    refreshed(&*store, id(2), 0, days(6)).await;
    ended(&*store, id(3), days(1)).await;
    refreshed(&*store, id(4), 0, days(6)).await;
    ended(&*store, id(4), days(8)).await;
    refreshed(&*store, id(7), 0, days(6)).await;
    refreshed(&*store, id(7), 1, days(7)).await;
    let steps = async |before| {
        let (mut after, mut deleted) = (None, Vec::new());
        loop {
            let step = store.sweep_families(after, before, 2).await.unwrap();
            deleted.push(step.deleted);
            after = step.next;
            if after.is_none() {
                return deleted;
            }
        }
    };
    // Of each pair nothing, then at the end of the walk the last one.
    let before = Timestamp::from_millis(days(1).millis() - 1);
    assert_eq!(steps(before).await, [0, 0, 0, 0]);
    assert_eq!(steps(days(1)).await, [0, 1, 0, 0]);
    let before = Timestamp::from_millis(days(7).millis() - 1);
    assert_eq!(steps(before).await, [0, 0, 0, 0]);
    assert_eq!(steps(days(7)).await, [1, 1, 1, 0]);
    assert_eq!(left(&*store).await, [2, 4, 7]);
    assert_eq!(steps(days(8)).await, [1, 0]);
    assert_eq!(steps(days(13)).await, [1, 0]);
    assert_eq!(steps(days(14)).await, [1]);
    let nothing = store.sweep_families(None, days(99), 2).await.unwrap();
    assert_eq!(nothing, Step::default());
}

/// What a refresh prolongs is not deleted by whoever has seen it before.
pub(super) async fn a_family_refreshed_beside_the_walk_is_not_lost(database: &Database) {
    const COUNT: u128 = 60;
    let (one, other) = (database.open().await, database.open().await);
    parties(&*one).await;
    for number in 1..=COUNT {
        opened(&*one, number, 1, "a", NOW).await;
    }
    let done = Arc::new(AtomicBool::new(false));
    let walking = {
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let (mut after, mut deleted) = (None, 0);
            while !done.load(Ordering::Relaxed) {
                // As if its clock ran ahead: to this one all are over that were not refreshed.
                let step = other
                    .sweep_families(after, NOW.plus(IDLE), 7)
                    .await
                    .unwrap();
                deleted += step.deleted;
                after = step.next;
            }
            deleted
        })
    };
    let now = NOW.plus(IDLE).minus(Duration::from_secs(1));
    let mut rotated = Vec::new();
    for number in (1..=COUNT).rev() {
        match refreshed(&*one, id(number), 0, now).await {
            Verdict::Granted(Turn::Rotated) => rotated.push(number),
            Verdict::Refused(Refusal::Unknown) => {}
            verdict => panic!("{verdict:?}"),
        }
    }
    done.store(true, Ordering::Relaxed);
    let deleted = walking.await.unwrap();
    rotated.reverse();
    assert_eq!(left(&*one).await, rotated);
    assert_eq!(u128::from(deleted) + rotated.len() as u128, COUNT);
}

/// The walk waits for nobody: not for a refresh that hangs, nor does it hold one up for long.
pub(super) async fn a_family_that_is_locked_is_left_to_the_next_walk(database: &Database) {
    if database.engine() == Engine::Sqlite {
        // There is one writer at a time.
        return;
    }
    let store = database.open().await;
    parties(&*store).await;
    for number in 1..=3 {
        opened(&*store, number, 1, "a", NOW).await;
    }
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    let lock =
        "begin; select id from family where id = '00000000-0000-0000-0000-000000000002' for update";
    sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
    let walk = async || {
        store
            .sweep_families(None, days(99), 9)
            .await
            .unwrap()
            .deleted
    };
    assert_eq!(walk().await, 2);
    assert_eq!(left(&*store).await, [2]);
    let bounds = Bounds {
        now: NOW,
        changes_before: Timestamp::from_millis(0),
        events_before: None,
        families_before: days(99),
    };
    assert_eq!(store.sweep(&bounds, 9).await.unwrap().families, 0);
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    assert_eq!(walk().await, 1);
    assert_eq!(left(&*store).await, [0; 0]);
}

/// However many there are: one row of the user, one entry, one event.
pub(super) async fn thousands_of_families_of_a_user_end_by_one_update(database: &Database) {
    let store = database.open().await;
    parties(&*store).await;
    let last = opened(&*store, 1, 1, "a", NOW).await;
    let copies = "insert into family (id, client_id, client_epoch, subject, user_epoch, scope, \
         resources, auth_time, amr, counter, mac_version, mac_since, rotated_at, created_at, \
         idle_expires_at, expires_at, notes) \
         select NEW_ID, client_id, client_epoch, subject, user_epoch, scope, \
         resources, auth_time, amr, counter, mac_version, mac_since, rotated_at, created_at, \
         idle_expires_at, expires_at, notes from family, NUMBERS";
    let (new_id, numbers) = match database.engine() {
        Engine::Postgres => ("gen_random_uuid()", "generate_series(1, 3000)"),
        Engine::Sqlite => (
            "randomblob(16)",
            "(with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000) \
             select i from n)",
        ),
    };
    let copies = copies.replace("NEW_ID", new_id).replace("NUMBERS", numbers);
    database.execute(&copies).await;
    let living = async || {
        let all = FamilyQuery {
            subject: Some(last.grant.subject),
            limit: 9999,
            ..FamilyQuery::default()
        };
        let found = store.families(&all).await.unwrap();
        assert_eq!(found.len(), 3001);
        let is_living =
            |(family, standing): &&(Family, Standing)| family.ending(standing, NOW).is_none();
        found.iter().filter(is_living).count()
    };
    assert_eq!(living().await, 3001);
    let (events, changes, seq, entries) = traces(database).await;
    for table in ["end_user", "family", "client"] {
        watch(database, table).await;
    }
    apply(&*store, end_sessions(last.grant.subject))
        .await
        .unwrap();
    assert_eq!(living().await, 0);
    let ended = traces(database).await;
    // The entry, and that the user has changed.
    assert_eq!(ended, (events + 1, changes + 2, seq + 2, entries + 1));
    let touched: Vec<(String,)> = database.rows("select name from touched").await;
    assert_eq!(touched, [("end_user".to_owned(),)]);
}

/// Notes from now on each row of a table that is updated, in the table `touched`.
async fn watch(database: &Database, table: &str) {
    let sql = match database.engine() {
        Engine::Postgres => format!(
            "create table if not exists touched (name text); \
             create or replace function touch() returns trigger language plpgsql as \
             $$ begin insert into touched values (tg_table_name); return null; end $$; \
             create trigger touch after update on {table} for each row execute function touch()"
        ),
        Engine::Sqlite => format!(
            "create table if not exists touched (name text); \
             create trigger touch_{table} after update on {table} \
             begin insert into touched values ('{table}'); end"
        ),
    };
    database.execute(&sql).await;
}

pub(super) async fn a_restored_database_has_no_living_family_unless_told_otherwise(
    database: &Database,
) {
    let store = database.open().await;
    parties(&*store).await;
    let families = [
        opened(&*store, 1, 1, "a", NOW).await,
        opened(&*store, 2, 2, "b", NOW).await,
    ];
    let endings = async || {
        let mut endings = Vec::new();
        for family in &families {
            let (family, standing) = store.family(family.id).await.unwrap().unwrap();
            endings.push(family.ending(&standing, NOW));
        }
        endings
    };
    let restore = |keep_tokens| Change::Restore {
        keep_tokens,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*store, restore(true)).await.unwrap();
    assert_eq!(endings().await, [None, None]);
    apply(&*store, restore(false)).await.unwrap();
    let ended = Some(Refusal::ClientSessionsEnded);
    assert_eq!(endings().await, [ended, ended]);
}
