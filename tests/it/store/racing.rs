//! What happens at the same time, on two nodes: refreshes beside refreshes, and beside whatever ends
//! them.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Applied, Change, EventType},
        client::Client,
        code::{CODE_LIFE, CodeRefusal, Redeemed, Redemption},
        family::{
            EndReason, Family, Grant, Outcome, Presentation, RefreshPolicy, Refusal, Turn, Verdict,
        },
        id::FamilyId,
        user::User,
    },
    store::{Bounds, Store, StoreError},
};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::{
    sync::{Barrier, watch},
    task::JoinSet,
};

use super::{
    sample::{
        ATTEMPTS, NOW, TOKENS_DIE_AT, again, apply, client, create, create_user, delete,
        delete_user, end_sessions, update, user,
    },
    sessions::{consent, opened, put_consent},
    sign_in::{
        IDLE, Site, TERMS, at, code, hash, id, millis, redemption, refresh, refresh_by, revoke,
        verdict,
    },
};
use crate::support::{
    database::{Database, Engine, statement},
    process::{Stopwatch, pause},
    soon,
};

/// Presents a batch at a moment, and again what was held by others for too long; what became of it.
async fn judged(store: &dyn Store, batch: &[Presentation], now: Timestamp) -> Vec<Outcome> {
    let mut outcomes = again(|| store.rotate(batch, &TERMS, now)).await.unwrap();
    for _ in 1..ATTEMPTS {
        let is_locked = |outcome: &Outcome| matches!(outcome, Outcome::Locked);
        let held = outcomes.iter().map(is_locked);
        let held: Vec<_> = held
            .zip(batch)
            .filter(|(is_locked, _)| *is_locked)
            .collect();
        if held.is_empty() {
            break;
        }
        let held: Vec<_> = held
            .into_iter()
            .map(|(_, presented)| presented.clone())
            .collect();
        let told = again(|| store.rotate(&held, &TERMS, now)).await.unwrap();
        let places = outcomes.iter_mut().filter(|outcome| is_locked(outcome));
        for (place, outcome) in places.zip(told) {
            *place = outcome;
        }
    }
    outcomes
}

/// What became of the tokens of a batch, as far as the state of a family shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    rotated: i64,
    replayed: usize,
    first_replays: usize,
    reused: usize,
    ended: usize,
    over: usize,
}

impl Tally {
    fn take(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Granted(Turn::Rotated) => self.rotated += 1,
            Verdict::Granted(Turn::Replayed { is_first }) => {
                self.replayed += 1;
                self.first_replays += usize::from(is_first);
            }
            Verdict::Reused => self.reused += 1,
            Verdict::Ended => self.ended += 1,
            Verdict::Refused(
                Refusal::Ended
                | Refusal::UserDisabled
                | Refusal::UserDeleted
                | Refusal::UserSessionsEnded
                | Refusal::ClientDisabled
                | Refusal::ClientSessionsEnded,
            ) => self.over += 1,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) async fn of_64_who_present_a_token_at_once_one_rotates_it(database: &Database) {
    let policies = [
        RefreshPolicy::Standard,
        RefreshPolicy::Shared,
        RefreshPolicy::Strict,
    ];
    let other = database.open().await;
    for (number, policy) in (1..).zip(policies) {
        let name = format!("client-{number}");
        let site = Site::at(database, database.open().await, &name, number, policy).await;
        for round in 0..5 {
            let family = site.open(number * 100 + round).await;
            let mut callers = JoinSet::new();
            for caller in 0..64 {
                let store = if caller % 2 == 0 { &site.store } else { &other }.clone();
                let batch = [refresh_by(&format!("caller-{caller}"), &family, 0)];
                callers.spawn(async move { judged(&*store, &batch, at(caller)).await.remove(0) });
            }
            let mut tally = Tally::default();
            let mut successors = Vec::new();
            for outcome in callers.join_all().await {
                tally.take(verdict(&outcome));
                if let Outcome::Judged {
                    verdict: Verdict::Granted(_),
                    family,
                    ..
                } = outcome
                {
                    successors.push((family.counter, family.mac_version));
                }
            }
            let row = site.row(&family).await;
            assert_eq!(row.counter, 1);
            let expected = if policy == RefreshPolicy::Strict {
                assert_eq!(row.revoke_reason, Some(EndReason::Reuse));
                Tally {
                    rotated: 1,
                    reused: 1,
                    over: 62,
                    ..Tally::default()
                }
            } else {
                assert_eq!((row.revoked_at, row.notes.iter().count()), (None, 1));
                Tally {
                    rotated: 1,
                    replayed: 63,
                    first_replays: 1,
                    ..Tally::default()
                }
            };
            assert_eq!(tally, expected, "{policy}");
            assert!(
                successors
                    .iter()
                    .all(|successor| *successor == (1, TERMS.mac_version))
            );
        }
    }
    let reuses: Vec<(i64, i64)> = database
        .rows(
            "select (select count(*) from event where type = 'family.reuse_detected'), \
             (select count(*) from revocation where kind = 'sid')",
        )
        .await;
    assert_eq!(reuses, [(5, 5)]);
}

/// What goes on beside the refreshes of a round.
async fn disturb(site: &Site<'_>, store: &dyn Store, kind: usize, families: &[Family]) {
    let client = store.client(&site.client).await.unwrap();
    let of_site = store.user(site.user).await.unwrap();
    let change = match (kind, client, of_site) {
        (0, ..) => end_sessions(site.user),
        (1, ..) => Change::RevokeClientTokens {
            client_id: site.client.clone(),
            tokens_die_at: TOKENS_DIE_AT,
        },
        (2, _, Some(before)) => Change::PutUser {
            expected: Some(before.revision),
            user: Box::new(User {
                disabled: !before.disabled,
                ..before
            }),
            event: EventType::UserUpdated,
            ends_sessions: true,
            tokens_die_at: TOKENS_DIE_AT,
        },
        (3, Some(before), _) => update(Client {
            disabled: !before.disabled,
            ..before
        }),
        (4, Some(before), _) => delete(&before),
        (5, _, Some(before)) => delete_user(&before),
        (number, ..) => Change::EndFamily {
            family: families[number % families.len()].id,
            reason: EndReason::RevokedByOperator,
            tokens_die_at: TOKENS_DIE_AT,
        },
    };
    done(again(|| apply(store, change.clone())).await);
}

/// Somebody else may have been faster; anything else must not be.
fn done(result: Result<Applied, StoreError>) -> bool {
    match result {
        Ok(_) => true,
        Err(StoreError::Conflict) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// Makes what a round before has removed or disabled.
async fn repair(site: &Site<'_>) {
    match site.store.client(&site.client).await.unwrap() {
        None => {
            let client = client(site.client.as_str());
            apply(&*site.store, create(client)).await.unwrap();
        }
        Some(before) if before.disabled => {
            let enabled = Client {
                disabled: false,
                ..before
            };
            apply(&*site.store, update(enabled)).await.unwrap();
        }
        Some(_) => {}
    }
    match site.store.user(site.user).await.unwrap() {
        None => {
            let anew = User {
                id: site.user,
                ..user(site.user.uuid().as_u128())
            };
            apply(&*site.store, create_user(anew)).await.unwrap();
        }
        Some(before) if before.disabled => {
            site.change_user(false, |before| User {
                disabled: false,
                ..before
            })
            .await;
        }
        Some(_) => {}
    }
}

/// What meets in one round: four families of each site, and a code of each.
struct Round {
    families: Vec<Family>,
    redemptions: Vec<Redemption>,
}

impl Round {
    async fn of(sites: &[Site<'_>; 2], number: u128) -> Self {
        let mut families = Vec::new();
        let mut redemptions = Vec::new();
        for (site, first) in sites.iter().zip([number, number + 10]) {
            repair(site).await;
            let original = site.open(first).await;
            site.copy(&original, first + 1..=first + 3).await;
            families.extend((0..4).map(|copy| Family {
                id: id(first + copy),
                ..original.clone()
            }));
            let code = code(site.grant().await);
            let is_stored = site
                .store
                .put_code(&hash(first + 5), &code, &[].into())
                .await;
            assert!(is_stored.unwrap());
            redemptions.push(redemption(first + 5, &code));
        }
        Self {
            families,
            redemptions,
        }
    }

    /// Batches with the same families in opposite orders. The token of 1 is presented before anybody
    /// was given it, or after.
    fn batches(&self) -> [Vec<Presentation>; 4] {
        let families = &self.families;
        [
            families.iter().map(|family| refresh(family, 0)).collect(),
            families
                .iter()
                .rev()
                .map(|family| refresh(family, 0))
                .collect(),
            families
                .iter()
                .rev()
                .map(|family| refresh(family, 1))
                .collect(),
            families
                .iter()
                .step_by(3)
                .map(|family| revoke(family, 0))
                .collect(),
        ]
    }

    /// Exchanges the codes: which families that opened.
    async fn redeem(&self, store: &dyn Store) -> Vec<bool> {
        let mut opened = Vec::new();
        for redemption in &self.redemptions {
            let redeemed = again(|| store.redeem_code(redemption, at(0)))
                .await
                .unwrap();
            opened.push(matches!(redeemed, Redeemed::Opened { .. }));
        }
        opened
    }

    /// The rows fit what everybody was told. How many families have ended?
    async fn settle(
        &self,
        store: &dyn Store,
        told: Vec<(FamilyId, Verdict)>,
        opened: &[bool],
    ) -> i64 {
        let mut tallies: HashMap<FamilyId, Tally> = HashMap::new();
        for (family, verdict) in told {
            let verdict = match verdict {
                Verdict::Granted(Turn::Recovered) => Verdict::Granted(Turn::Rotated),
                verdict => verdict,
            };
            tallies.entry(family).or_default().take(verdict);
        }
        let mut ends = 0;
        for (family, tally) in &tallies {
            let (row, _) = store.family(*family).await.unwrap().unwrap();
            let place = format!("{row:?} {tally:?}");
            // That of 1 went ahead of that of 0, or followed it.
            assert!((tally.rotated..=2).contains(&row.counter), "{place}");
            assert!(tally.reused + tally.ended <= 1, "{place}");
            ends += i64::from(row.revoked_at.is_some());
        }
        for (redemption, is_opened) in self.redemptions.iter().zip(opened) {
            let family = store.family(redemption.family_id).await.unwrap();
            assert_eq!(family.is_some(), *is_opened);
        }
        ends
    }
}

pub(super) async fn batches_and_mass_ends_at_once_disturb_nobody(database: &Database) {
    let nodes = [database.open().await, database.open().await];
    let sites = [
        Site::at(database, nodes[0].clone(), "a", 1, RefreshPolicy::Standard).await,
        Site::at(database, nodes[1].clone(), "b", 2, RefreshPolicy::Standard).await,
    ];
    let mut ends = 0;
    for number in 1..=200 {
        let round = Round::of(&sites, u128::try_from(number * 1000).unwrap()).await;
        let mut callers = JoinSet::new();
        for (caller, batch) in round.batches().into_iter().enumerate() {
            let store = nodes[caller % 2].clone();
            callers.spawn(async move {
                let outcomes = judged(&*store, &batch, at(0)).await;
                let families = batch.into_iter().map(|presented| presented.family);
                let verdicts = outcomes.iter().map(verdict);
                families.zip(verdicts).collect::<Vec<_>>()
            });
        }
        let (opened, (), ()) = tokio::join!(
            round.redeem(&*nodes[0]),
            disturb(&sites[0], &*nodes[1], number % 8, &round.families),
            disturb(&sites[1], &*nodes[0], (number + 3) % 8, &round.families),
        );
        let told = callers.join_all().await.into_iter().flatten().collect();
        ends += round.settle(&*nodes[0], told, &opened).await;
    }
    // Whatever has ended was published once, and the order of changes has no gap.
    let counts: Vec<(i64, i64, i64, i64)> = database
        .rows(
            "select (select count(*) from event where type like 'family.%'), \
             (select count(*) from revocation where kind = 'sid'), \
             (select count(*) from change), (select seq from change_head)",
        )
        .await;
    let (events, entries, changes, head) = counts[0];
    assert_eq!((events, entries, changes), (ends, ends, head));
    if database.engine() == Engine::Postgres {
        // With the connections go their last statistics to the server.
        for node in nodes {
            node.close().await;
        }
        let deadlocks: Vec<(i64,)> = database
            .rows("select deadlocks from pg_stat_database where datname = current_database()")
            .await;
        assert_eq!(deadlocks, [(0,)], "the order of locks was not kept");
    }
}

/// Whatever ends sessions, by name.
const ENDS: [&str; 8] = [
    "operator",
    "client",
    "user disabled",
    "password",
    "user gone",
    "client's sessions",
    "client disabled",
    "client gone",
];

/// Ends families in one of these ways.
async fn end(site: &Site<'_>, how: &str, families: &[Family]) {
    try_end(site, how, families).await.unwrap();
}

async fn try_end(site: &Site<'_>, how: &str, families: &[Family]) -> Result<(), StoreError> {
    let store = &*site.store;
    let of_client = store.client(&site.client).await.unwrap().unwrap();
    let of_user = store.user(site.user).await.unwrap().unwrap();
    let put = |user: User, ends_sessions| Change::PutUser {
        expected: Some(user.revision),
        user: Box::new(user),
        event: EventType::UserUpdated,
        ends_sessions,
        tokens_die_at: TOKENS_DIE_AT,
    };
    let change = match how {
        "operator" => {
            for family in families {
                let change = Change::EndFamily {
                    family: family.id,
                    reason: EndReason::RevokedByOperator,
                    tokens_die_at: TOKENS_DIE_AT,
                };
                apply(store, change).await?;
            }
            return Ok(());
        }
        "client" => {
            for family in families {
                let verdict = site.verdict(revoke(family, 0), at(0)).await;
                assert_eq!(verdict, Verdict::Ended);
            }
            return Ok(());
        }
        "user disabled" => put(
            User {
                disabled: true,
                ..of_user
            },
            false,
        ),
        "password" => put(of_user, true),
        "user gone" => delete_user(&of_user),
        "client's sessions" => Change::RevokeClientTokens {
            client_id: site.client.clone(),
            tokens_die_at: TOKENS_DIE_AT,
        },
        "client disabled" => update(Client {
            disabled: true,
            ..of_client
        }),
        "client gone" => delete(&of_client),
        other => panic!("{other}"),
    };
    apply(store, change).await.map(drop)
}

pub(super) async fn no_refresh_that_begins_after_the_end_of_a_family_succeeds(database: &Database) {
    let nodes = [database.open().await, database.open().await];
    let mut number = 0;
    for how in ENDS {
        for _ in 0..5 {
            number += 10;
            let name = format!("client-{number}");
            let store = nodes[0].clone();
            let site = Site::at(database, store, &name, number, RefreshPolicy::Standard).await;
            let original = site.open(number).await;
            site.copy(&original, number + 1..=number + 3).await;
            let families: Vec<_> = (0..4)
                .map(|copy| Family {
                    id: id(number + copy),
                    ..original.clone()
                })
                .collect();
            let is_over = Arc::new(AtomicBool::new(false));
            let mut callers = JoinSet::new();
            for (caller, family) in families.iter().cloned().enumerate() {
                let (store, is_over) = (nodes[caller % 2].clone(), Arc::clone(&is_over));
                callers.spawn(async move {
                    let mut counter = 0;
                    loop {
                        let must_fail = is_over.load(Ordering::SeqCst);
                        let batch = [refresh(&family, counter)];
                        let outcome = judged(&*store, &batch, at(0)).await;
                        match verdict(&outcome[0]) {
                            Verdict::Granted(Turn::Rotated) if !must_fail => counter += 1,
                            Verdict::Refused(_) if must_fail => return (family, counter),
                            Verdict::Refused(_) => {}
                            other => panic!("{how}: {other:?}, after the end: {must_fail}"),
                        }
                    }
                });
            }
            end(&site, how, &families).await;
            is_over.store(true, Ordering::SeqCst);
            for (family, counter) in callers.join_all().await {
                let (row, standing) = site.read(&family).await;
                assert_eq!(row.counter, counter);
                assert!(row.ending(&standing, at(0)).is_some(), "{how}");
            }
        }
    }
}

pub(super) async fn a_sign_in_beside_the_end_of_sessions_leaves_nothing_living(
    database: &Database,
) {
    /// The rounds of each end: in the first one the sign-in comes after it, in the last one before it, and
    /// in all others beside it.
    const ROUNDS: usize = 12;
    let nodes = [database.open().await, database.open().await];
    let mut number = 0;
    for how in &ENDS[2..] {
        for round in 1..=ROUNDS {
            number += 10;
            let name = format!("client-{number}");
            let store = nodes[0].clone();
            let site = Site::at(database, store, &name, number, RefreshPolicy::Standard).await;
            let code = code(site.grant().await);
            let sign_in = async {
                // About as long as the other takes, in some of the rounds.
                for _ in round..ROUNDS / 2 {
                    nodes[1].client(&site.client).await.unwrap();
                }
                let stored = nodes[1].put_code(&hash(number), &code, &[].into()).await;
                let redeemed = nodes[1]
                    .redeem_code(&redemption(number, &code), at(0))
                    .await;
                (stored.unwrap(), redeemed.unwrap())
            };
            let end = async {
                for _ in ROUNDS / 2..round {
                    nodes[0].client(&site.client).await.unwrap();
                }
                end(&site, how, &[]).await;
            };
            let (is_stored, redeemed) = match round {
                1 => {
                    end.await;
                    sign_in.await
                }
                ROUNDS => {
                    let signed_in = sign_in.await;
                    end.await;
                    signed_in
                }
                _ => tokio::join!(sign_in, end).0,
            };
            if let Redeemed::Opened { family, .. } = redeemed {
                assert!(is_stored && round > 1, "{how}");
                let (family, standing) = site.read(&family).await;
                assert!(standing.refusal(&family.grant).is_some(), "{how}");
                let verdict = site.verdict(refresh(&family, 0), at(0)).await;
                assert!(matches!(verdict, Verdict::Refused(_)), "{how}: {verdict:?}");
            } else {
                assert!(round < ROUNDS, "{how}: {redeemed:?}");
            }
            // A code that was not exchanged in time never is.
            let again = redemption(number, &code);
            let again = site.store.redeem_code(&again, at(0)).await.unwrap();
            assert!(matches!(again, Redeemed::Refused(_)), "{how}: {again:?}");
        }
    }
}

/// What a user has taken back brings nothing, from the moment on at which that was answered: no code, no
/// family for a code, and no family that came before goes on. Nor where less was given again at once.
pub(super) async fn nothing_comes_of_a_consent_that_was_taken_back(database: &Database) {
    const WORKERS: u128 = 4;
    const LINES: [(&str, &str); 2] = [("urn:other", "read"), ("urn:other", "write")];
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let nodes = [site.store.clone(), database.open().await];
    let session = opened(&site, 7).await;
    let code = code(Grant {
        session_id: Some(session.id),
        ..site.grant().await
    });
    let withdrawal = Change::WithdrawConsent {
        subject: site.user,
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    for round in 1..=6_u128 {
        let before = site.store.consent(site.user, &site.client).await.unwrap();
        let allowed = consent(&site, &LINES, 1).await;
        let expected = before.map(|before| before.given_at);
        put_consent(&site, &allowed, expected).await.unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (count, mut counted) = watch::channel(0);
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (store, code) = (nodes[usize::from(worker % 2 == 0)].clone(), code.clone());
            let (is_over, count) = (Arc::clone(&is_over), count.clone());
            let asked = allowed.permissions.clone();
            workers.spawn(async move {
                let mut families = Vec::new();
                // Each goes on until it has tried once when all is over.
                for number in (round * WORKERS + worker) * 100_000.. {
                    let was_over = is_over.load(Ordering::SeqCst);
                    let hash = hash(number);
                    let storing = store.put_code(&hash, &code, &asked);
                    let is_stored = storing.await.unwrap();
                    assert!(!(was_over && is_stored), "a code");
                    let was_over_then = is_over.load(Ordering::SeqCst);
                    let redeemed = store.redeem_code(&redemption(number, &code), at(1)).await;
                    match redeemed.unwrap() {
                        Redeemed::Opened { family, .. } => {
                            assert!(!was_over_then, "a family");
                            families.push(*family);
                            count.send_modify(|count| *count += 1);
                        }
                        Redeemed::Refused(CodeRefusal::Unknown) => {}
                        refused @ Redeemed::Refused(_) => panic!("{refused:?}"),
                    }
                    if was_over {
                        break;
                    }
                }
                families
            });
        }
        // In the midst of it.
        soon(counted.wait_for(|count| *count >= 5)).await.unwrap();
        apply(&*site.store, withdrawal.clone()).await.unwrap();
        if round % 2 == 0 {
            let less = consent(&site, &LINES[..1], 0).await;
            put_consent(&site, &less, None).await.unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        let families = soon(workers.join_all()).await.concat();
        assert!(families.len() >= 5);
        for family in &families {
            let row = site.row(family).await;
            assert_eq!(row.revoke_reason, Some(EndReason::ConsentWithdrawn));
            let verdict = site.verdict(refresh(family, 0), at(2)).await;
            assert_eq!(verdict, Verdict::Refused(Refusal::Ended));
        }
    }
}

/// Whoever has used up a code may present it for as long as it lives: that must not keep sessions from
/// being ended.
pub(super) async fn whoever_presents_codes_holds_up_no_end_of_sessions(database: &Database) {
    const CALLERS: usize = 9;
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let code = code(site.grant().await);
    assert!(
        site.store
            .put_code(&hash(1), &code, &[].into())
            .await
            .unwrap()
    );
    let again = redemption(1, &code);
    let redeem = move |store: Arc<dyn Store>| {
        let redemption = again.clone();
        async move { store.redeem_code(&redemption, at(0)).await.unwrap() }
    };
    let opened = redeem(site.store.clone()).await;
    assert!(matches!(opened, Redeemed::Opened { .. }), "{opened:?}");
    let is_over = Arc::new(AtomicBool::new(false));
    let all_are_there = Arc::new(Barrier::new(CALLERS + 1));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (is_over, call) = (is_over.clone(), redeem.clone());
        let all_are_there = all_are_there.clone();
        let store = database.open().await;
        callers.spawn(async move {
            for count in 1.. {
                let again = call(store.clone()).await;
                assert!(matches!(again, Redeemed::Refused(_)), "{again:?}");
                if count == 1 {
                    all_are_there.wait().await;
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
    }
    soon(all_are_there.wait()).await;
    let begun = Stopwatch::start();
    for how in ["password", "client's sessions", "user disabled"] {
        end(&site, how, &[]).await;
    }
    let took = begun.elapsed();
    is_over.store(true, Ordering::Relaxed);
    callers.join_all().await;
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// The refresh has read that all is well before the sessions end, and is committed after that.
pub(super) async fn a_refresh_judged_before_the_end_of_sessions_is_covered_by_it(
    database: &Database,
) {
    if database.engine() == Engine::Sqlite {
        // There is one writer at a time: what is judged is committed before anything else.
        return;
    }
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let (mut number, mut ends) = (0, ["client's sessions", "password"].to_vec());
    while let Some(how) = ends.last() {
        number += 1;
        assert!(number < 2 * ATTEMPTS, "too slow each time");
        let family = site.open(number).await;
        let head = site.head().await;
        let mut other = PgConnection::connect(database.url()).await.unwrap();
        let lock = "begin; select id from family for update";
        sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
        let refreshing = {
            let (store, batch) = (site.store.clone(), [refresh(&family, 0)]);
            tokio::spawn(async move { store.rotate(&batch, &TERMS, at(0)).await })
        };
        soon(database.wait_for_a_lock()).await;
        end(&site, how, &[]).await;
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
        // It has given up waiting where the machine stood still meanwhile.
        let outcomes = match refreshing.await.unwrap() {
            Err(StoreError::Unavailable(_)) => continue,
            outcomes => outcomes.unwrap(),
        };
        if let [Outcome::Locked] = outcomes[..] {
            continue;
        }
        let Outcome::Judged {
            verdict, standing, ..
        } = &outcomes[0]
        else {
            panic!("{outcomes:?}")
        };
        assert_eq!(*verdict, Verdict::Granted(Turn::Rotated));
        assert_eq!(standing.refusal(&family.grant), None);
        // Its access token is of the second in which it was judged.
        let issued_at = Timestamp::from_seconds(at(0).seconds());
        let entries = site.store.revocations_since(head).await.unwrap();
        assert!(
            entries.iter().any(|entry| entry.covers(issued_at)),
            "{entries:?}"
        );
        let next = site.verdict(refresh(&family, 1), at(0)).await;
        assert!(matches!(next, Verdict::Refused(_)), "{how}: {next:?}");
        ends.pop();
    }
}

/// What has to wait for others is as of when it is made: refreshes go on meanwhile, on what was known
/// before.
pub(super) async fn a_revocation_that_had_to_wait_covers_what_was_issued_meanwhile(
    database: &Database,
) {
    for (number, how) in (1..).zip(["password", "client's sessions"]) {
        let (name, store) = (format!("client-{number}"), database.open().await);
        let site = Site::at(database, store, &name, number, RefreshPolicy::Standard).await;
        for attempt in 1.. {
            assert!(attempt <= ATTEMPTS, "given up each time");
            if is_covered_after_waiting(&site, number * 100 + attempt, how).await {
                break;
            }
        }
    }
}

/// `false` if the store did not wait as long as the lock was held: on a machine that stands still that is
/// longer than it is meant to be.
async fn is_covered_after_waiting(site: &Site<'_>, number: u128, how: &str) -> bool {
    /// Longer than a change may take that did not have to wait, and into the next second; far less than
    /// the store waits.
    const HELD: u32 = 900;
    let database = site.database;
    let family = site.open(number).await;
    let head = site.head().await;
    let lock = Lock::take(database).await;
    let now = at(i64::from(HELD) - 10);
    {
        let mut ending = pin!(try_end(site, how, &[]));
        let waiting = async {
            if database.engine() == Engine::Postgres {
                soon(database.wait_for_a_lock()).await;
            }
            pause(Duration::from_millis(HELD.into())).await;
            if database.engine() == Engine::Postgres {
                let verdict = site.verdict(refresh(&family, 0), now).await;
                assert_eq!(verdict, Verdict::Granted(Turn::Rotated));
            }
        };
        tokio::select! {
            ended = &mut ending => {
                let Err(StoreError::Unavailable(_)) = ended else {
                    panic!("nothing had to be waited for: {ended:?}")
                };
                return false;
            }
            () = waiting => {}
        }
        lock.release().await;
        match ending.await {
            Err(StoreError::Unavailable(_)) => return false,
            ended => ended.unwrap(),
        }
    }
    let entries = site.store.revocations_since(head).await.unwrap();
    let [entry] = &entries[..] else {
        panic!("{entries:?}")
    };
    let issued_at = Timestamp::from_seconds(now.seconds());
    assert!(entry.covers(issued_at), "{how}: {entry:?}");
    // The row tells the same.
    let (_, standing) = site.read(&family).await;
    assert_eq!(standing.tokens_not_before(), entry.not_before);
    let verdict = site.verdict(refresh(&family, 1), at(2000)).await;
    assert!(matches!(verdict, Verdict::Refused(_)), "{how}: {verdict:?}");
    true
}

/// A node that has stopped in the middle of a batch may hold many families for seconds.
pub(super) async fn whoever_holds_families_holds_up_nobody_else(database: &Database) {
    const HELD: RangeInclusive<u128> = 100..=219;
    if database.engine() == Engine::Sqlite {
        // There is one writer at a time: whoever holds something holds everything.
        return;
    }
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let original = site.open(1).await;
    site.copy(&original, 2..=9).await;
    site.copy(&original, HELD).await;
    let family = |number| Family {
        id: id(number),
        ..original.clone()
    };
    let mut batch: Vec<_> = HELD.map(|number| refresh(&family(number), 0)).collect();
    batch.extend((1..=7).map(|number| refresh(&family(number), 0)));
    batch.push(revoke(&family(8), 0));
    // A family that is not there is not one that is held.
    batch.push(refresh(&family(99), 0));
    // Neither end of the batch is spared.
    batch.swap(0, 121);
    let held = format!("id between '{}' and '{}'", id(100), id(219));
    let rows = database.rows(statement(format!(
        "select f::text from family f where {held} order by id"
    )));
    let before: Vec<(String,)> = rows.await;
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    let lock = statement(format!(
        "begin; select id from family where {held} for update"
    ));
    sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
    let begun = Stopwatch::start();
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    // Less than whoever asks waits.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    for (presented, outcome) in batch.iter().zip(&outcomes) {
        let number = presented.family.uuid().as_u128();
        match outcome {
            Outcome::Locked => assert!(HELD.contains(&number), "{number}"),
            Outcome::Unknown => assert_eq!(number, 99),
            judged => {
                let expected = match number {
                    8 => Verdict::Ended,
                    _ => Verdict::Granted(Turn::Rotated),
                };
                assert_eq!((verdict(judged), number < 99), (expected, true), "{number}");
            }
        }
    }
    let alone = site
        .store
        .rotate(&batch[1..2], &TERMS, at(1))
        .await
        .unwrap();
    assert!(matches!(alone[..], [Outcome::Locked]), "{alone:?}");
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    let rows = database.rows(statement(format!(
        "select f::text from family f where {held} order by id"
    )));
    let after: Vec<(String,)> = rows.await;
    assert_eq!(after, before);
    // What was held is as good as before: were it spent, it would end its family now.
    for number in [100, 219] {
        let verdict = site.verdict(refresh(&family(number), 0), at(2)).await;
        assert_eq!(verdict, Verdict::Granted(Turn::Rotated));
    }
}

/// Two nodes delete side by side, while what lives is refreshed.
pub(super) async fn two_who_sweep_at_once_delete_what_is_over_and_nothing_that_lives(
    database: &Database,
) {
    const DEAD: u128 = 400;
    const LIVING: RangeInclusive<u128> = 1000..=1039;
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let nodes = [site.store.clone(), database.open().await];
    let original = site.open(1).await;
    site.copy(&original, 2..=DEAD).await;
    let living = site.open(*LIVING.start()).await;
    let living = site.present_all(&living, &[(0, millis(IDLE) - 1)]).await;
    site.copy(&living, *LIVING.start() + 1..=*LIVING.end())
        .await;
    for number in 2000..2060 {
        let mut code = code(site.grant().await);
        if number % 3 == 0 {
            code.expires_at = code.expires_at.plus(Duration::from_millis(1));
        }
        assert!(
            site.store
                .put_code(&hash(number), &code, &[].into())
                .await
                .unwrap()
        );
    }
    let bounds = Bounds {
        now: NOW.plus(CODE_LIFE),
        changes_before: Timestamp::from_millis(0),
        events_before: None,
        families_before: NOW,
    };
    let sweep = move |store: Arc<dyn Store>| async move {
        let (mut codes, mut families) = (0, 0);
        let mut after = None;
        loop {
            let swept = store.sweep(&bounds, 3).await.unwrap();
            codes += swept.codes;
            let step = store.sweep_families(after, NOW.plus(IDLE), 7).await;
            let step = step.unwrap();
            families += step.deleted;
            after = step.next;
            if after.is_none() && !swept.is_full(3) {
                return (codes, families);
            }
        }
    };
    let mut sweeping = JoinSet::new();
    for store in nodes {
        sweeping.spawn(sweep(store));
    }
    for number in LIVING {
        let family = Family {
            id: id(number),
            ..living.clone()
        };
        let verdict = site.verdict(refresh(&family, 1), at(millis(IDLE))).await;
        assert_eq!(verdict, Verdict::Granted(Turn::Rotated));
    }
    let mut deleted = sweeping.join_all().await;
    // What one has left to the other, and the other to the one.
    deleted.push(sweep(site.store.clone()).await);
    let codes: u64 = deleted.iter().map(|(codes, _)| codes).sum();
    let families: u64 = deleted.iter().map(|(_, families)| families).sum();
    // The two that were exchanged are over, too.
    let expected = (2 + 40, u64::try_from(DEAD).unwrap());
    assert_eq!((codes, families), expected, "{deleted:?}");
    let left: Vec<(i64, i64)> = database
        .rows("select (select count(*) from authorization_code), (select count(*) from family)")
        .await;
    assert_eq!(left, [(20, 40)]);
}

/// What every change waits for, held by somebody else.
enum Lock {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Lock {
    async fn take(database: &Database) -> Self {
        match database.engine() {
            Engine::Postgres => {
                let mut holder = PgConnection::connect(database.url()).await.unwrap();
                let lock = "begin; select seq from change_head for update";
                sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
                Self::Postgres(holder)
            }
            Engine::Sqlite => {
                let mut holder = SqliteConnection::connect(database.url()).await.unwrap();
                let lock = sqlx::raw_sql("begin immediate").execute(&mut holder);
                lock.await.unwrap();
                Self::Sqlite(holder)
            }
        }
    }

    async fn release(self) {
        match self {
            Self::Postgres(holder) => holder.close().await.unwrap(),
            Self::Sqlite(holder) => holder.close().await.unwrap(),
        }
    }
}
