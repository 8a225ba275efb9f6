//! What becomes of presented refresh tokens, exactly.

use std::{ops::Range, time::Duration};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change, ChangeRow, EventType, Topic},
        client::Client,
        code::{CodeRefusal, Redeemed},
        event::{Event, EventQuery},
        family::{
            EndReason, Family, Grant, Intent, Note, NoteKind, Outcome, Party, Presentation,
            RefreshPolicy, Refusal, Terms, Turn, Verdict,
        },
        id::{ClientId, FamilyId},
        revocation::{Revocation, RevocationKind, RevokedValue},
        scope::Scope,
    },
    store::StoreError,
};
use serde_json::json;

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, client, create, created, delete},
    sessions,
    sign_in::{
        IDLE, LIFETIME, OFFERED, Site, TERMS, at, cause, id, millis, party, refresh, refresh_by,
        resources, revoke, scope, verdict,
    },
};
use crate::support::{
    database::{Database, Engine, statement},
    soon,
};

const ROTATED: Verdict = Verdict::Granted(Turn::Rotated);
const KEPT: Verdict = Verdict::Granted(Turn::Kept);
const RECOVERED: Verdict = Verdict::Granted(Turn::Recovered);
const REPLAYED: Verdict = Verdict::Granted(Turn::Replayed { is_first: true });
const REPLAYED_AGAIN: Verdict = Verdict::Granted(Turn::Replayed { is_first: false });
const SUPERSEDED: Verdict = Verdict::Refused(Refusal::Superseded);

/// The windows of the policies, in milliseconds.
const WINDOWS: [(RefreshPolicy, i64); 4] = [
    (RefreshPolicy::None, 0),
    (RefreshPolicy::Shared, 900_000),
    (RefreshPolicy::Standard, 30_000),
    (RefreshPolicy::Strict, 0),
];

impl Site<'_> {
    async fn set_policy(&self, policy: RefreshPolicy) {
        self.change_client(|before| Client {
            refresh_policy: policy,
            ..before
        })
        .await;
    }

    /// Presents a token, which must change nothing at all.
    async fn verdict_without_a_trace(&self, presentation: Presentation, now: Timestamp) -> Verdict {
        let before = (self.dump().await, self.writers(&presentation).await);
        let verdict = self.verdict(presentation.clone(), now).await;
        let after = (self.dump().await, self.writers(&presentation).await);
        assert_eq!(after, before, "{verdict:?}");
        verdict
    }

    /// Which transaction has written the row, where the engine tells: what is the same may have
    /// been written once more.
    async fn writers(&self, presentation: &Presentation) -> Vec<(String,)> {
        match self.database.engine() {
            Engine::Postgres => {
                let id = presentation.family;
                let sql = format!("select xmin::text from family where id = '{id}'");
                self.database.rows(statement(sql)).await
            }
            Engine::Sqlite => Vec::new(),
        }
    }

    async fn events(&self) -> Vec<Event> {
        let query = EventQuery {
            limit: 1000,
            ..EventQuery::default()
        };
        self.store.events(&query).await.unwrap()
    }
}

fn with_scope(presentation: Presentation, text: &str, uris: &[&str]) -> Presentation {
    Presentation {
        intent: Intent::Refresh {
            scope: Some(scope(text)),
            resources: resources(uris),
            offered: resources(&OFFERED),
        },
        ..presentation
    }
}

fn note(time: i64, kind: NoteKind, counter: i64, name: &str) -> Note {
    Note {
        at: at(time),
        kind,
        counter,
        party: party(name),
    }
}

fn notes(family: &Family) -> Vec<Note> {
    family.notes.iter().cloned().collect()
}

/// The entry of revocation that the end of a family leaves.
fn entry(seq: i64, family: FamilyId, tokens_die_at: Timestamp) -> Revocation {
    Revocation {
        seq,
        kind: RevocationKind::Sid,
        value: RevokedValue::of(&family.to_string()),
        not_before: None,
        expires_at: Some(tokens_die_at),
        owner: None,
    }
}

pub(super) async fn a_family_is_read_back_as_it_was_opened(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Shared).await;
    site.set_user("tokens_not_before = 4000").await;
    let bare = Grant {
        scope: Scope::default(),
        resources: Vec::new(),
        amr: Vec::new(),
        ..site.grant().await
    };
    let full = Grant {
        session_id: Some(sessions::opened(&site, 9).await.id),
        amr: vec!["pwd".to_owned(), "'\"\\ ünï".to_owned()],
        dpop_jkt: Some("thumbprint".to_owned()),
        ..site.grant().await
    };
    for (number, grant) in [(1, bare), (2, full)] {
        let opened = site.open_for(number, grant.clone()).await;
        let expected = Family {
            id: id(number),
            grant,
            for_session: false,
            counter: 0,
            mac_version: TERMS.mac_version,
            mac_since: 0,
            rotated_at: NOW,
            created_at: NOW,
            idle_expires_at: NOW.plus(IDLE),
            expires_at: NOW.plus(LIFETIME),
            revoked_at: None,
            revoke_reason: None,
            first: party("app"),
            last: party("app"),
            notes: opened.notes.clone(),
        };
        assert_eq!(opened, expected);
        assert_eq!(notes(&opened), []);
        let (row, standing) = site.read(&opened).await;
        assert_eq!(row, expected);
        let client = standing.client.as_ref().unwrap();
        assert_eq!(client.policy, RefreshPolicy::Shared);
        assert_eq!(client.epoch, row.grant.client_epoch);
        assert!(!client.disabled);
        let user = standing.user.as_ref().unwrap();
        assert_eq!((user.epoch, user.disabled), (row.grant.user_epoch, false));
        assert_eq!(user.roles, ["reader"]);
        assert_eq!(user.claims["tier"], 1);
        assert_eq!(user.username, "user-1");
        assert_eq!(
            standing.tokens_not_before(),
            Some(Timestamp::from_seconds(4))
        );
    }
    assert!(site.store.family(id(3)).await.unwrap().is_none());
}

pub(super) async fn a_rotation_moves_the_counter_and_what_goes_with_it(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let bystander = site.open(2).await;
    let (head, events) = (site.head().await, site.events().await);
    let terms = Terms {
        mac_version: 5,
        idle: Duration::from_secs(100),
        ..TERMS
    };
    let now = at(7);
    let expected = Family {
        counter: 1,
        mac_version: 5,
        mac_since: 1,
        rotated_at: now,
        idle_expires_at: at(100_007),
        last: party("phone"),
        ..family.clone()
    };
    let presentation = refresh_by("phone", &family, 0);
    let outcomes = site.store.rotate(&[presentation], &terms, now).await;
    let [
        Outcome::Judged {
            verdict,
            family: rotated,
            standing,
        },
    ] = &outcomes.unwrap()[..]
    else {
        panic!()
    };
    assert_eq!(*verdict, ROTATED);
    assert_eq!(**rotated, expected);
    assert_eq!(site.read(&family).await, (expected, (**standing).clone()));
    assert_eq!(site.row(&bystander).await, bystander);
    // Refreshing publishes nothing.
    assert_eq!(site.head().await, head);
    assert_eq!(site.events().await, events);
    assert!(
        site.store
            .rotate(&[], &TERMS, now)
            .await
            .unwrap()
            .is_empty()
    );
}

pub(super) async fn the_token_before_gets_the_same_successor_within_the_window(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let mut number = 0;
    for (policy, window) in WINDOWS {
        // Where clocks differ, a rotation may lie ahead.
        for age in [-5000, 0, 1, window - 1, window, window + 1] {
            number += 1;
            site.set_policy(RefreshPolicy::Standard).await;
            let family = site.open(number).await;
            let family = site.present_all(&family, &[(0, 100), (1, 10_000)]).await;
            site.set_policy(policy).await;
            let now = at(10_000 + age);
            let outcome = site.present(refresh_by("tab", &family, 1), now).await;
            let row = site.row(&family).await;
            let place = format!("{policy} at {age}: {outcome:?}");
            if age.max(0) < window {
                assert_eq!(verdict(&outcome), REPLAYED, "{place}");
                let expected = Family {
                    notes: row.notes.clone(),
                    ..family.clone()
                };
                assert_eq!(row, expected, "{place}");
                let noted = note(10_000 + age, NoteKind::Replayed, 2, "tab");
                assert_eq!(notes(&row), [noted], "{place}");
                // Again, it is nothing new.
                let again = refresh_by("other tab", &family, 1);
                let again = site.verdict_without_a_trace(again, now).await;
                assert_eq!(again, REPLAYED_AGAIN, "{place}");
            } else {
                assert_eq!(verdict(&outcome), Verdict::Reused, "{place}");
                assert_eq!(row.revoke_reason, Some(EndReason::Reuse), "{place}");
            }
        }
    }
}

/// The clock is that of the database, and somebody sets it while sessions live.
pub(super) async fn a_clock_that_is_set_moves_no_end_and_widens_no_window_beyond_that(
    database: &Database,
) {
    const HOUR: i64 = 3_600_000;
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let turned = site.present_all(&family, &[(0, HOUR)]).await;
    // Set back by an hour: the window closes by the moment that it would have closed by.
    for now in [0, HOUR - 1, HOUR + 29_999] {
        let verdict = site.verdict(refresh(&family, 0), at(now)).await;
        assert!(
            matches!(verdict, Verdict::Granted(Turn::Replayed { .. })),
            "{now}"
        );
    }
    assert_eq!(site.row(&family).await.rotated_at, turned.rotated_at);
    let late = site.verdict(refresh(&family, 0), at(HOUR + 30_000)).await;
    assert_eq!(late, Verdict::Reused);

    // A rotation while it is set back is of that moment, and so is its window.
    for (number, replayed) in [(2, true), (3, false)] {
        let family = site.open(number).await;
        let turned = site.present_all(&family, &[(0, HOUR), (1, 0)]).await;
        assert_eq!((turned.counter, turned.rotated_at), (2, at(0)));
        assert_eq!(turned.idle_expires_at, at(0).plus(IDLE));
        assert_eq!(turned.expires_at, family.expires_at);
        let (now, expected) = if replayed {
            (29_999, REPLAYED)
        } else {
            (30_000, Verdict::Reused)
        };
        assert_eq!(site.verdict(refresh(&family, 1), at(now)).await, expected);
    }

    // Set ahead, it ends nothing for good; a refresh there lasts no longer than the absolute end.
    let family = site.open(4).await;
    let life = millis(LIFETIME);
    for (now, refusal) in [
        (life, Refusal::Expired),
        (millis(IDLE), Refusal::IdleExpired),
    ] {
        let refused = site
            .verdict_without_a_trace(refresh(&family, 0), at(now))
            .await;
        assert_eq!(refused, Verdict::Refused(refusal));
    }
    let ahead = millis(IDLE) - 1;
    let turned = site.present_all(&family, &[(0, ahead), (1, 0)]).await;
    assert_eq!(
        (turned.idle_expires_at, turned.expires_at),
        (at(0).plus(IDLE), at(life))
    );

    // What was ended stays so at whatever time.
    assert_eq!(
        site.verdict(revoke(&family, 2), at(HOUR)).await,
        Verdict::Ended
    );
    for now in [i64::MIN / 2, -HOUR, 0, HOUR, life, i64::MAX / 2] {
        for counter in [1, 2, 3] {
            let presented = refresh(&family, counter);
            let refused = site.verdict_without_a_trace(presented, at(now)).await;
            assert_eq!(
                refused,
                Verdict::Refused(Refusal::Ended),
                "{counter} at {now}"
            );
        }
    }
}

pub(super) async fn a_token_spent_long_ago_ends_its_family(database: &Database) {
    use RefreshPolicy::{None, Shared, Standard, Strict};
    let site = Site::of(database, Standard).await;
    let reused = Verdict::Reused;
    let mut number = 0;
    // The last rotation is at 0, from 10 to 11.
    for (policy, counter, now, expected) in [
        (Standard, 9, -5000, reused),
        (Standard, 9, 0, reused),
        (Standard, 0, 1, reused),
        (Strict, 10, 0, reused),
        (Strict, 10, -1, reused),
        (Strict, 9, 0, reused),
        (None, 10, 0, reused),
        (None, 9, 0, reused),
        (Shared, 9, 0, SUPERSEDED),
        (Shared, 9, 899_999, SUPERSEDED),
        (Shared, 9, 900_000, reused),
        (Shared, 3, 899_999, SUPERSEDED),
        (Shared, 3, 900_000, reused),
        (Shared, 2, 0, reused),
        (Shared, 2, -5000, reused),
        (Shared, 0, 899_999, reused),
    ] {
        number += 1;
        site.set_policy(Standard).await;
        let family = site.open(number).await;
        let turns: Vec<_> = (0..=10).map(|counter| (counter, counter - 10)).collect();
        let family = site.present_all(&family, &turns).await;
        assert_eq!(family.counter, 11);
        site.set_policy(policy).await;
        let presentation = refresh_by("thief", &family, counter);
        let place = format!("{policy} {counter} at {now}");
        if expected == SUPERSEDED {
            let verdict = site.verdict_without_a_trace(presentation, at(now)).await;
            assert_eq!(verdict, SUPERSEDED, "{place}");
            // The family goes on.
            let newest = site.verdict(refresh(&family, 11), at(now)).await;
            assert_eq!(newest, ROTATED, "{place}");
        } else {
            let verdict = site.verdict(presentation, at(now)).await;
            assert_eq!(verdict, expected, "{place}");
            let row = site.row(&family).await;
            let ended = Family {
                revoked_at: Some(at(now)),
                revoke_reason: Some(EndReason::Reuse),
                notes: row.notes.clone(),
                ..family.clone()
            };
            assert_eq!(row, ended, "{place}");
            assert_eq!(notes(&row), [note(now, NoteKind::Reused, 11, "thief")]);
            // The newest token, and that of the thief, are worth nothing any more.
            for counter in [11, 10, counter] {
                let after = refresh(&family, counter);
                let after = site.verdict_without_a_trace(after, at(now)).await;
                assert_eq!(after, Verdict::Refused(Refusal::Ended), "{place}");
            }
        }
    }
}

pub(super) async fn a_family_ends_to_the_millisecond(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let refused = |refusal| Verdict::Refused(refusal);
    // Not refreshed for too long.
    let family = site.open(1).await;
    let idle = millis(IDLE);
    let late = site
        .verdict_without_a_trace(refresh(&family, 0), at(idle))
        .await;
    assert_eq!(late, refused(Refusal::IdleExpired));
    assert_eq!(
        site.verdict(refresh(&family, 0), at(idle - 1)).await,
        ROTATED
    );
    assert_eq!(site.row(&family).await.idle_expires_at, at(2 * idle - 1));
    // The token before it does not prolong anything.
    let replay = site.verdict(refresh(&family, 0), at(idle)).await;
    assert_eq!(replay, REPLAYED);
    assert_eq!(site.row(&family).await.idle_expires_at, at(2 * idle - 1));
    let late = refresh(&family, 1);
    let late = site.verdict_without_a_trace(late, at(2 * idle - 1)).await;
    assert_eq!(late, refused(Refusal::IdleExpired));
    // Of age, however often it was refreshed.
    let family = site.open(2).await;
    let life = millis(LIFETIME);
    for (counter, time) in [(0, idle - 1), (1, 2 * idle - 2), (2, 3 * idle - 3)] {
        let verdict = site.verdict(refresh(&family, counter), at(time)).await;
        assert_eq!(verdict, ROTATED);
    }
    assert_eq!(
        site.verdict(refresh(&family, 3), at(4 * idle - 4)).await,
        ROTATED
    );
    let row = site.row(&family).await;
    assert_eq!(row.idle_expires_at, row.expires_at);
    assert_eq!(row.expires_at, at(life));
    assert_eq!(row.ends_at(), at(life));
    assert_eq!(
        site.verdict(refresh(&family, 4), at(life - 1)).await,
        ROTATED
    );
    for (counter, presented) in [(5, life), (4, life), (5, life + 1)] {
        let late = refresh(&family, counter);
        let late = site.verdict_without_a_trace(late, at(presented)).await;
        assert_eq!(late, refused(Refusal::Expired));
    }
}

pub(super) async fn what_was_signed_in_with_one_factor_rests_while_two_are_wanted(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let refused = Verdict::Refused(Refusal::OneFactor);
    let of_client = async |required| {
        site.change_client(|before| Client {
            second_factor_required: required,
            ..before
        })
        .await;
    };
    let of_user = async |required| {
        let required = i32::from(required);
        site.set_user(&format!("second_factor_required = {required}"))
            .await;
    };
    let families = [site.open(1).await, site.open(2).await, site.open(3).await];
    let [honest, stolen, left] = &families;
    let strong = Grant {
        amr: vec!["pwd".to_owned(), "otp".to_owned(), "mfa".to_owned()],
        ..site.grant().await
    };
    let strong = site.open_for(4, strong).await;
    site.present_all(stolen, &[(0, 0), (1, 0)]).await;
    for (client, user) in [(true, false), (false, true), (true, true)] {
        of_client(client).await;
        of_user(user).await;
        let weak = site.verdict_without_a_trace(refresh(honest, 0), at(1));
        assert_eq!(weak.await, refused);
    }
    assert_eq!(site.verdict(refresh(&strong, 0), at(1)).await, ROTATED);
    // It is still a sign-in: its theft is seen, and it can be ended.
    let reuse = site.verdict(refresh(stolen, 0), at(1)).await;
    assert_eq!(reuse, Verdict::Reused);
    assert_eq!(site.verdict(revoke(left, 0), at(1)).await, Verdict::Ended);
    of_client(false).await;
    of_user(false).await;
    assert_eq!(site.verdict(refresh(honest, 0), at(2)).await, ROTATED);
}

/// Goes through the cases from the last to the first. Those after it hold as well, so that each two
/// neighbours are told apart.
pub(super) async fn the_cases_are_judged_in_their_order(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let grant = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    let doomed = site.open_for(1, grant.clone()).await;
    let family = site.open_for(2, grant).await;
    for family in [&doomed, &family] {
        site.present_all(family, &[(0, 0), (1, 0)]).await;
    }
    let family = site.row(&family).await;
    let check = async |presentation: &Presentation, now, expected| {
        let refused = site.verdict_without_a_trace(presentation.clone(), now);
        assert_eq!(refused.await, Verdict::Refused(expected));
    };
    let mut presented = with_scope(refresh(&family, 2), "read", &["urn:foreign"]);
    check(&presented, at(1), Refusal::Target).await;
    presented = with_scope(presented, "read admin", &["urn:foreign"]);
    check(&presented, at(1), Refusal::Scope).await;
    presented.counter = 0;
    let reuse = Presentation {
        family: doomed.id,
        ..presented.clone()
    };
    assert_eq!(site.verdict(reuse, at(1)).await, Verdict::Reused);
    // From here on nobody gets as far as that.
    site.set_user("session_epoch = 8").await;
    check(&presented, at(1), Refusal::UserSessionsEnded).await;
    let sessions = Change::RevokeClientTokens {
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, sessions).await.unwrap();
    check(&presented, at(1), Refusal::ClientSessionsEnded).await;
    site.set_user("disabled = 1").await;
    check(&presented, at(1), Refusal::UserDisabled).await;
    site.change_client(|before| Client {
        disabled: true,
        ..before
    })
    .await;
    check(&presented, at(1), Refusal::ClientDisabled).await;
    site.delete_user().await;
    site.change_client(|before| Client {
        disabled: false,
        ..before
    })
    .await;
    check(&presented, at(1), Refusal::UserDeleted).await;
    site.change_client(|before| Client {
        disabled: true,
        ..before
    })
    .await;
    check(&presented, at(1), Refusal::UserDeleted).await;
    let gone = site.store.client(&site.client).await.unwrap().unwrap();
    apply(&*site.store, delete(&gone)).await.unwrap();
    check(&presented, at(1), Refusal::ClientSessionsEnded).await;
    check(&presented, family.idle_expires_at, Refusal::IdleExpired).await;
    let over = family.expires_at;
    check(&presented, over, Refusal::Expired).await;
    site.set(family.id, "revoked_at = 1, revoke_reason = 'reuse'")
        .await;
    check(&presented, over, Refusal::Ended).await;
    for other in [None, Some("other key".to_owned())] {
        presented.dpop_jkt = other;
        check(&presented, over, Refusal::OtherKey).await;
    }
    presented.client_id = ClientId::parse("other").unwrap();
    check(&presented, over, Refusal::OtherClient).await;
    presented.family = id(3);
    let outcome = site.present(presented, over).await;
    assert!(matches!(outcome, Outcome::Unknown), "{outcome:?}");
}

pub(super) async fn whoever_is_no_party_to_a_family_changes_nothing(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let bound = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    let family = site.open_for(1, bound).await;
    let family = site.present_all(&family, &[(0, 0), (1, 0)]).await;
    // Spent and not, within the window and not, and one that is ahead.
    for counter in [-1, 0, 1, 2, 3, i64::MAX, i64::MIN] {
        for now in [at(1), at(60_000)] {
            let own = refresh(&family, counter);
            let other_client = Presentation {
                client_id: ClientId::parse("other").unwrap(),
                ..own.clone()
            };
            let verdict = site
                .verdict_without_a_trace(other_client.clone(), now)
                .await;
            assert_eq!(verdict, Verdict::Refused(Refusal::OtherClient));
            let to_end = Presentation {
                intent: Intent::Revoke,
                ..other_client
            };
            let verdict = site.verdict_without_a_trace(to_end, now).await;
            assert_eq!(verdict, Verdict::Refused(Refusal::OtherClient));
            for key in [None, Some("other key".to_owned()), Some(String::new())] {
                let other_key = Presentation {
                    dpop_jkt: key,
                    ..own.clone()
                };
                let verdict = site.verdict_without_a_trace(other_key, now).await;
                assert_eq!(verdict, Verdict::Refused(Refusal::OtherKey));
            }
            let before = site.dump().await;
            let unknown = Presentation {
                family: id(9),
                ..own
            };
            let outcome = site.present(unknown, now).await;
            assert!(matches!(outcome, Outcome::Unknown), "{outcome:?}");
            assert_eq!(site.dump().await, before);
        }
    }
    // A key more than asked for is none too many.
    let unbound = site.open(2).await;
    let with_key = Presentation {
        dpop_jkt: Some("key".to_owned()),
        ..refresh(&unbound, 0)
    };
    assert_eq!(site.verdict(with_key, at(1)).await, ROTATED);
    assert_eq!(site.row(&unbound).await.grant.dpop_jkt, None);
}

pub(super) async fn a_request_may_narrow_a_grant_and_never_widen_it(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let mut counter = 0;
    for (text, uris, expected) in [
        ("read", &["urn:other"][..], None),
        ("", &[], None),
        ("write read", &["urn:other", "https://api.example"], None),
        ("read", &["urn:other", "urn:other"], None),
        ("read admin", &[], Some(Refusal::Scope)),
        ("admin", &["urn:foreign"], Some(Refusal::Scope)),
        ("READ", &[], Some(Refusal::Scope)),
        ("read", &["urn:foreign"], Some(Refusal::Target)),
        ("read", &["urn:other", "urn:foreign"], Some(Refusal::Target)),
        ("read", &["urn:OTHER"], Some(Refusal::Target)),
    ] {
        // The same goes for a retry.
        let retried = if expected.is_some() {
            counter - 1
        } else {
            counter
        };
        for presented in [counter, retried] {
            let presentation = with_scope(refresh(&family, presented), text, uris);
            if let Some(refusal) = expected {
                let verdict = site.verdict_without_a_trace(presentation, at(1)).await;
                assert_eq!(verdict, Verdict::Refused(refusal), "{text} {uris:?}");
            } else {
                let verdict = site.verdict(presentation, at(1)).await;
                assert!(matches!(verdict, Verdict::Granted(_)), "{verdict:?}");
            }
        }
        counter = site.row(&family).await.counter;
    }
    assert_eq!(counter, 4);
    assert_eq!(site.row(&family).await.grant, family.grant);
}

/// Whoever gets no answer comes again, and would pass for a thief.
pub(super) async fn what_cannot_be_answered_spends_no_token(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let family = site.open(1).await;
    let asking = |uris: &[&str], offered: &[&str]| Presentation {
        intent: Intent::Refresh {
            scope: None,
            resources: resources(uris),
            offered: resources(offered),
        },
        ..refresh(&family, 0)
    };
    for (uris, offered) in [
        (&[][..], &[][..]),
        (&[], &["urn:foreign"]),
        (&["urn:other"], &["https://api.example"]),
    ] {
        let presented = asking(uris, offered);
        let verdict = site.verdict_without_a_trace(presented, at(1)).await;
        assert_eq!(verdict, Verdict::Refused(Refusal::Target), "{uris:?}");
    }
    // The clock was set back, and new tokens count two seconds from now, and more.
    let moment = at(2001).millis();
    site.set_user(&format!("tokens_not_before = {moment}"))
        .await;
    let verdict = site
        .verdict_without_a_trace(refresh(&family, 0), at(0))
        .await;
    assert_eq!(verdict, Verdict::Refused(Refusal::NotYet));
    let code = site.grant().await;
    let code = super::sign_in::code(code);
    let hash = super::sign_in::hash(2);
    assert!(site.store.put_code(&hash, &code, &[].into()).await.unwrap());
    let before = site.dump().await;
    let redemption = super::sign_in::redemption(2, &code);
    let refused = site.store.redeem_code(&redemption, at(0)).await.unwrap();
    let expected = CodeRefusal::Grant(Refusal::NotYet);
    assert!(matches!(refused, Redeemed::Refused(why) if why == expected));
    assert_eq!(site.dump().await, before);
    // A client waits for as long as that.
    let opened = site.store.redeem_code(&redemption, at(1)).await.unwrap();
    assert!(matches!(opened, Redeemed::Opened { .. }), "{opened:?}");
    // One resource is enough. A spent token ends the family whatever could be answered.
    let presented = asking(&["urn:other", "https://api.example"], &["urn:other"]);
    assert_eq!(site.verdict(presented, at(1)).await, ROTATED);
    let again = site.verdict(asking(&[], &[]), at(0)).await;
    assert_eq!(again, Verdict::Reused);
}

pub(super) async fn without_rotation_the_same_token_goes_on(database: &Database) {
    let site = Site::of(database, RefreshPolicy::None).await;
    let family = site.open(1).await;
    let terms = Terms {
        mac_version: 9,
        ..TERMS
    };
    for time in [1, 50_000, 3_000_000] {
        let presentation = refresh_by("server", &family, 0);
        let outcomes = site.store.rotate(&[presentation], &terms, at(time)).await;
        assert_eq!(verdict(&outcomes.unwrap()[0]), KEPT);
        let expected = Family {
            idle_expires_at: at(time).plus(IDLE),
            last: party("server"),
            ..family.clone()
        };
        assert_eq!(site.row(&family).await, expected);
    }
}

pub(super) async fn a_reuse_is_published_with_both_parties(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let bystander = site.open(2).await;
    for (counter, time) in [(0, 5000), (1, 9000)] {
        let victim = refresh_by("victim", &family, counter);
        assert_eq!(site.verdict(victim, at(time)).await, ROTATED);
    }
    let before = site.store.snapshot().await.unwrap().position;
    let events = site.events().await.len();
    let thief = refresh_by("thief", &family, 0);
    let terms = Terms {
        tokens_die_at: at(77),
        ..TERMS
    };
    let outcomes = site
        .store
        .rotate(&[thief], &terms, at(20_000))
        .await
        .unwrap();
    assert_eq!(verdict(&outcomes[0]), Verdict::Reused);
    // One change, one entry, one event.
    let seq = before.seq + 1;
    let changes = site.store.changes_since(before, 9, NOW).await.unwrap();
    assert_eq!((changes.epoch, changes.head), (before.epoch, seq));
    let change = ChangeRow {
        seq,
        topic: Some(Topic::Revocation),
        target: family.id.to_string(),
    };
    assert_eq!(changes.rows, [change]);
    let entries = site.store.revocations_since(before.seq).await.unwrap();
    assert_eq!(entries, [entry(seq, family.id, at(77))]);
    let events = site.events().await.split_off(events);
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    let expected = Event {
        id: event.id,
        at: at(20_000),
        kind: EventType::FamilyReuseDetected.to_string(),
        target: family.id.to_string(),
        cause: cause("thief"),
        before: None,
        after: Some(json!({
            "client_id": "app",
            "subject": site.user.to_string(),
            "reason": "reuse",
            "refreshes": 2,
            "last_refresh_at": at(9000).seconds(),
            "last": { "address": "victim.example", "user_agent": "victim/1.0" },
        })),
    };
    assert_eq!(*event, expected);
    let row = site.row(&family).await;
    assert_eq!((&row.first, &row.last), (&party("app"), &party("victim")));
    assert_eq!(notes(&row), [note(20_000, NoteKind::Reused, 2, "thief")]);
    assert_eq!(site.row(&bystander).await, bystander);
}

pub(super) async fn a_client_ends_a_family_by_any_of_its_tokens(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let grant = Grant {
        dpop_jkt: Some("key".to_owned()),
        ..site.grant().await
    };
    // The last one is ahead of what the database knows.
    for (number, counter) in [(1, 2), (2, 1), (3, 0), (4, 3)] {
        let family = site.open_for(number, grant.clone()).await;
        let family = site.present_all(&family, &[(0, 0), (1, 1000)]).await;
        let before = site.store.snapshot().await.unwrap().position;
        let events = site.events().await.len();
        // Who ends something need not prove to hold the key (RFC 7009 asks for the client alone).
        let presentation = Presentation {
            dpop_jkt: None,
            cause: cause("app, signing out"),
            ..revoke(&family, counter)
        };
        let verdict = site.verdict(presentation.clone(), at(100_000)).await;
        assert_eq!(verdict, Verdict::Ended);
        let ended = Family {
            revoked_at: Some(at(100_000)),
            revoke_reason: Some(EndReason::RevokedByClient),
            ..family.clone()
        };
        assert_eq!(site.row(&family).await, ended);
        let entries = site.store.revocations_since(before.seq).await.unwrap();
        assert_eq!(entries, [entry(before.seq + 1, family.id, TOKENS_DIE_AT)]);
        let events = site.events().await.split_off(events);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventType::FamilyRevoked.as_str());
        assert_eq!(events[0].target, family.id.to_string());
        assert_eq!(events[0].cause, cause("app, signing out"));
        assert_eq!(
            events[0].after.as_ref().unwrap()["reason"],
            "revoked_by_client"
        );
        // Again, it is over already.
        let again = site
            .verdict_without_a_trace(presentation, at(100_001))
            .await;
        assert_eq!(again, Verdict::Refused(Refusal::Ended));
        let newest = refresh(&family, 2);
        let newest = site.verdict_without_a_trace(newest, at(100_001)).await;
        assert_eq!(newest, Verdict::Refused(Refusal::Ended));
    }
    let idle = site.open_for(5, grant).await;
    let late = revoke(&idle, 0);
    let late = site
        .verdict_without_a_trace(late, idle.idle_expires_at)
        .await;
    assert_eq!(late, Verdict::Refused(Refusal::Ended));
}

pub(super) async fn an_operator_ends_a_family_once(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let end = |number| Change::EndFamily {
        family: id(number),
        reason: EndReason::RevokedByOperator,
        tokens_die_at: TOKENS_DIE_AT,
    };
    let operator = Cause {
        reason: Some("Lost phone".to_owned()),
        ..cause("operator")
    };
    let head = site.head().await;
    let applied = site.store.apply(&end(1), &operator, at(3)).await.unwrap();
    assert_eq!(applied.position.seq, head + 1);
    let ended = Family {
        revoked_at: Some(at(3)),
        revoke_reason: Some(EndReason::RevokedByOperator),
        ..family.clone()
    };
    assert_eq!(site.row(&family).await, ended);
    let entries = site.store.revocations_since(head).await.unwrap();
    assert_eq!(entries, [entry(head + 1, family.id, TOKENS_DIE_AT)]);
    let event = site.events().await.pop().unwrap();
    assert_eq!(event.kind, EventType::FamilyRevoked.as_str());
    assert_eq!((event.at, event.cause), (at(3), operator.clone()));
    assert_eq!(event.after.unwrap()["reason"], "revoked_by_operator");
    let before = site.dump().await;
    for number in [1, 2] {
        let again = site.store.apply(&end(number), &operator, at(4)).await;
        assert!(matches!(again, Err(StoreError::Conflict)), "{again:?}");
    }
    assert_eq!(site.dump().await, before);
    let after = site
        .verdict_without_a_trace(refresh(&family, 0), at(4))
        .await;
    assert_eq!(after, Verdict::Refused(Refusal::Ended));
}

pub(super) async fn user_and_client_are_looked_at_with_every_use(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let family = site.present_all(&family, &[(0, 0)]).await;
    // Neither the newest token, nor one within the window, nor one that would be a reuse.
    let check = async |expected| {
        for (counter, time) in [(1, 1), (0, 1), (0, 60_000), (7, 1)] {
            let presentation = refresh(&family, counter);
            let refused = site.verdict_without_a_trace(presentation, at(time)).await;
            assert_eq!(refused, Verdict::Refused(expected));
        }
        let end = site
            .verdict_without_a_trace(revoke(&family, 1), at(1))
            .await;
        assert_eq!(end, Verdict::Refused(Refusal::Ended));
    };
    site.set_user("disabled = 1").await;
    check(Refusal::UserDisabled).await;
    site.set_user("disabled = 0, session_epoch = 8").await;
    check(Refusal::UserSessionsEnded).await;
    let epoch = family.grant.user_epoch;
    site.set_user(&format!("session_epoch = {epoch}")).await;
    for disabled in [true, false] {
        site.change_client(|before| Client { disabled, ..before })
            .await;
        if disabled {
            check(Refusal::ClientDisabled).await;
        }
    }
    let of_client = site.store.client(&site.client).await.unwrap().unwrap();
    apply(&*site.store, delete(&of_client)).await.unwrap();
    check(Refusal::ClientSessionsEnded).await;
    // Another client of the same id has nothing to do with it.
    created(&*site.store, client("app")).await;
    check(Refusal::ClientSessionsEnded).await;
    let successor = site.store.client(&site.client).await.unwrap().unwrap();
    assert_ne!(successor.session_epoch, of_client.session_epoch);
    site.delete_user().await;
    check(Refusal::UserDeleted).await;
}

pub(super) async fn every_sign_in_at_a_client_ends_by_one_change(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let elsewhere = Site::at(
        database,
        site.store.clone(),
        "elsewhere",
        2,
        RefreshPolicy::Standard,
    )
    .await;
    let mut families = Vec::new();
    for number in 1..=20 {
        families.push(site.open(number).await);
    }
    let spared = elsewhere.open(21).await;
    let rows = database.dump(&["family"]).await;
    let head = site.head().await;
    let change = Change::RevokeClientTokens {
        client_id: site.client.clone(),
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*site.store, change).await.unwrap();
    assert_eq!(database.dump(&["family"]).await, rows);
    assert_eq!(site.store.revocations_since(head).await.unwrap().len(), 1);
    for family in &families {
        let refused = site.verdict(refresh(family, 0), at(1)).await;
        assert_eq!(refused, Verdict::Refused(Refusal::ClientSessionsEnded));
    }
    assert_eq!(elsewhere.verdict(refresh(&spared, 0), at(1)).await, ROTATED);
    let anew = site.open(22).await;
    assert_eq!(site.verdict(refresh(&anew, 0), at(1)).await, ROTATED);
}

pub(super) async fn a_database_that_has_lost_commits_goes_on_from_the_token(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let family = site.present_all(&family, &[(0, 0)]).await;
    let head = site.head().await;
    let terms = Terms {
        mac_version: 3,
        ..TERMS
    };
    // The database knows of one refresh, the client of five.
    let ahead = refresh_by("client", &family, 5);
    let outcomes = site.store.rotate(&[ahead], &terms, at(9)).await.unwrap();
    assert_eq!(verdict(&outcomes[0]), RECOVERED);
    let row = site.row(&family).await;
    let expected = Family {
        counter: 6,
        mac_version: 3,
        mac_since: 6,
        rotated_at: at(9),
        idle_expires_at: at(9).plus(IDLE),
        last: party("client"),
        notes: row.notes.clone(),
        ..family.clone()
    };
    assert_eq!(row, expected);
    assert_eq!(notes(&row), [note(9, NoteKind::Recovered, 1, "client")]);
    assert_eq!(site.head().await, head);
    // From here on it is a rotation like any other.
    for (presentation, time, expected) in [
        (refresh(&family, 5), 10, REPLAYED),
        (refresh(&row, 6), 11, ROTATED),
        (refresh(&family, 5), 12, Verdict::Reused),
    ] {
        let batch = [presentation];
        let outcomes = site.store.rotate(&batch, &terms, at(time)).await.unwrap();
        assert_eq!(verdict(&outcomes[0]), expected);
    }
    // A token that nobody can have, as its family has ended.
    let refused = site
        .verdict_without_a_trace(refresh(&row, 99), at(13))
        .await;
    assert_eq!(refused, Verdict::Refused(Refusal::Ended));
}

/// Who has got hold of a key that is out of use makes any token with it. None that such a family
/// could be at, or beyond, has that key.
pub(super) async fn a_token_of_a_key_older_than_the_familys_is_unknown(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let terms = Terms {
        mac_version: TERMS.mac_version + 1,
        ..TERMS
    };
    let rotation = [refresh(&family, 0)];
    let outcomes = site.store.rotate(&rotation, &terms, at(1)).await.unwrap();
    assert_eq!(verdict(&outcomes[0]), ROTATED);
    for counter in [1, 2, 9, i64::MAX] {
        let refused = site
            .verdict_without_a_trace(refresh(&family, counter), at(2))
            .await;
        assert_eq!(refused, Verdict::Refused(Refusal::Unknown));
    }
    // The one before was minted with it.
    assert_eq!(site.verdict(refresh(&family, 0), at(3)).await, REPLAYED);
    let row = site.row(&family).await;
    let rotation = [refresh(&row, 1)];
    let outcomes = site.store.rotate(&rotation, &terms, at(4)).await.unwrap();
    assert_eq!(verdict(&outcomes[0]), ROTATED);
    // So the one before is none of the old key's now, for whatever purpose and however soon.
    for presented in [refresh(&family, 1), revoke(&family, 1), revoke(&family, 2)] {
        let refused = site.verdict_without_a_trace(presented, at(5)).await;
        assert_eq!(refused, Verdict::Refused(Refusal::Unknown));
    }
    assert_eq!(site.verdict(refresh(&row, 1), at(6)).await, REPLAYED);
}

pub(super) async fn a_replay_is_noted_once_and_no_more_than_there_is_room_for(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    // What matters more than replays stays.
    assert_eq!(
        site.verdict(refresh_by("client", &family, 4), at(0)).await,
        RECOVERED
    );
    for counter in 5..25 {
        let time = counter * 1000;
        assert_eq!(
            site.verdict(refresh(&family, counter), at(time)).await,
            ROTATED
        );
        for expected in [REPLAYED, REPLAYED_AGAIN, REPLAYED_AGAIN] {
            let late = refresh_by("tab", &family, counter);
            assert_eq!(site.verdict(late, at(time + 1)).await, expected);
        }
    }
    let row = site.row(&family).await;
    let mut expected = vec![note(0, NoteKind::Recovered, 0, "client")];
    for counter in 18..25 {
        let time = counter * 1000 + 1;
        expected.push(note(time, NoteKind::Replayed, counter + 1, "tab"));
    }
    assert_eq!(notes(&row), expected);
    let stolen = refresh_by("thief", &family, 0);
    assert_eq!(site.verdict(stolen, at(30_000)).await, Verdict::Reused);
    let row = site.row(&family).await;
    expected.remove(1);
    expected.push(note(30_000, NoteKind::Reused, 25, "thief"));
    assert_eq!(notes(&row), expected);
}

/// One row for each sign-in, whatever is done with its tokens, and whoever does it.
pub(super) async fn a_family_takes_no_more_room_however_often_it_is_used(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let by_long_name = |counter| Presentation {
        cause: Cause {
            user_agent: Some("🦀\"\\".repeat(1000)),
            ..cause("tab")
        },
        ..refresh(&family, counter)
    };
    let used = async |counters: Range<i64>| {
        for counter in counters {
            let now = at(counter * 1000);
            let foreign = Presentation {
                client_id: ClientId::parse("other").unwrap(),
                ..by_long_name(0)
            };
            for (presentation, expected) in [
                (by_long_name(counter), ROTATED),
                (by_long_name(counter), REPLAYED),
                (by_long_name(counter), REPLAYED_AGAIN),
                (foreign, Verdict::Refused(Refusal::OtherClient)),
                (
                    with_scope(by_long_name(counter + 1), "admin", &[]),
                    Verdict::Refused(Refusal::Scope),
                ),
            ] {
                assert_eq!(site.verdict(presentation, now).await, expected);
            }
        }
        let mut dump = site.dump().await;
        assert_eq!(dump[0].0, "family");
        let families = dump.remove(0).1;
        assert_eq!(families.len(), 1);
        (families[0].len(), dump)
    };
    // By then there is no room for another note.
    let (early, others) = used(0..10).await;
    let (late, the_same) = used(10..310).await;
    assert_eq!(others, the_same);
    // Numbers may have one more digit.
    assert!(late < early + 32, "{early} bytes, then {late}");
    assert!(late < 10_000, "{late} bytes");
}

pub(super) async fn of_a_user_agent_only_the_beginning_is_kept(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    let by = |agent: Option<String>| Presentation {
        cause: Cause {
            address: None,
            user_agent: agent,
            ..cause("app")
        },
        ..refresh(&family, 0)
    };
    let long = "ü'\"\\🦀".repeat(60);
    assert_eq!(site.verdict(by(Some(long.clone())), at(0)).await, ROTATED);
    assert_eq!(site.verdict(by(None), at(1)).await, REPLAYED);
    let row = site.row(&family).await;
    let beginning: String = long.chars().take(128).collect();
    let kept = |user_agent| Party {
        address: None,
        user_agent,
    };
    assert_eq!(row.last, kept(Some(beginning)));
    assert_eq!(notes(&row)[0].party, kept(None));
}

pub(super) async fn a_family_that_occurs_twice_is_judged_twice(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let family = site.open(1).await;
    let other = site.open(2).await;
    let batch = [
        refresh_by("one", &family, 0),
        refresh(&other, 0),
        refresh_by("two", &family, 0),
        refresh_by("three", &family, 1),
        revoke(&family, 1),
        refresh(&other, 1),
    ];
    let head = site.head().await;
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    let verdicts: Vec<_> = outcomes.iter().map(verdict).collect();
    let ended = Verdict::Refused(Refusal::Ended);
    let expected = [ROTATED, ROTATED, Verdict::Reused, ended, ended, ROTATED];
    assert_eq!(verdicts, expected);
    // Each outcome shows the family as it was then.
    let counters = outcomes.iter().map(|outcome| match outcome {
        Outcome::Judged { family, .. } => (family.counter, family.revoked_at.is_some()),
        other => panic!("{other:?}"),
    });
    let over = (1, true);
    let expected = [(1, false), (1, false), over, over, over, (2, false)];
    assert_eq!(counters.collect::<Vec<_>>(), expected);
    assert_eq!(site.row(&other).await.counter, 2);
    assert_eq!(site.head().await, head + 1);
}

pub(super) async fn each_event_of_a_batch_has_the_place_of_its_entry(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let mut batch = Vec::new();
    // Neither the order of ids nor that of opening.
    for number in [7, 3, 9, 1, 5] {
        let family = site.open(number).await;
        let family = site.present_all(&family, &[(0, 0)]).await;
        batch.push(match number {
            3 => refresh(&family, 1),
            9 => revoke(&family, 0),
            _ => refresh(&family, 0),
        });
    }
    let head = site.head().await;
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    let verdicts: Vec<_> = outcomes.iter().map(verdict).collect();
    let (reused, ended) = (Verdict::Reused, Verdict::Ended);
    assert_eq!(verdicts, [reused, ROTATED, ended, reused, reused]);
    assert_eq!(site.head().await, head + 4);
    let entries = site.store.revocations_since(head).await.unwrap();
    let expected: Vec<_> = [7, 9, 1, 5]
        .into_iter()
        .zip(head + 1..)
        .map(|(number, seq)| entry(seq, id(number), TOKENS_DIE_AT))
        .collect();
    assert_eq!(entries, expected);
    let placed: Vec<(String, i64, String)> = database
        .rows(
            "select e.type, e.seq - (select min(seq) from event where type like 'family.%'), e.target \
             from event e join change c on c.seq = e.seq and c.target = e.target \
             where e.type like 'family.%' order by e.seq",
        )
        .await;
    let (reuse, revoked) = (EventType::FamilyReuseDetected, EventType::FamilyRevoked);
    let expected = [(reuse, 0, 7), (revoked, 1, 9), (reuse, 2, 1), (reuse, 3, 5)]
        .map(|(kind, place, number)| (kind.to_string(), place, id(number).to_string()));
    assert_eq!(placed, expected);
}

pub(super) async fn a_batch_without_an_end_leaves_the_order_of_changes_alone(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let mut batch = Vec::new();
    for number in 1..=10 {
        let family = site.open(number).await;
        let family = site.present_all(&family, &[(0, 0)]).await;
        batch.push(refresh(&family, i64::from(number % 2 == 0)));
    }
    batch.push(Presentation {
        family: id(99),
        ..batch[0].clone()
    });
    let others = |dump: Vec<(&'static str, Vec<String>)>| {
        let is_other = |(table, _): &(&str, _)| *table != "family";
        dump.into_iter().filter(is_other).collect::<Vec<_>>()
    };
    let before = others(site.dump().await);
    // Whoever holds the order of changes is not in the way either.
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    let granted = outcomes.iter().filter(|outcome| {
        matches!(
            outcome,
            Outcome::Judged {
                verdict: Verdict::Granted(_),
                ..
            }
        )
    });
    assert_eq!(granted.count(), 10);
    assert_eq!(others(site.dump().await), before);
}

pub(super) async fn the_end_of_a_family_wakes_whoever_waits_for_changes(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let (reused, ended) = (site.open(1).await, site.open(2).await);
    site.present_all(&reused, &[(0, 0)]).await;
    // On SQLite only this process's own commits are heard of.
    let listener = match database.engine() {
        Engine::Sqlite => site.store.clone(),
        Engine::Postgres => database.open().await,
    };
    // What was before.
    soon(listener.changed()).await;
    for (presentation, expected) in [
        (refresh(&reused, 0), Verdict::Reused),
        (revoke(&ended, 0), Verdict::Ended),
    ] {
        assert_eq!(site.verdict(presentation, at(1)).await, expected);
        soon(listener.changed()).await;
    }
}

pub(super) async fn a_family_that_cannot_be_read_is_refused_alone(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let (sound, broken) = (site.open(1).await, site.open(2).await);
    site.set(broken.id, "notes = '[['").await;
    let batch = [refresh(&broken, 0), refresh(&sound, 0), revoke(&broken, 0)];
    let rows = database.dump(&["event", "change_head"]).await;
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    assert!(matches!(outcomes[0], Outcome::Illegible));
    assert_eq!(verdict(&outcomes[1]), ROTATED);
    assert!(matches!(outcomes[2], Outcome::Illegible));
    assert_eq!(database.dump(&["event", "change_head"]).await, rows);
    let read = site.store.family(broken.id).await;
    assert!(
        matches!(
            read,
            Err(StoreError::Corrupt {
                table: "family",
                column: "notes",
                ..
            })
        ),
        "{read:?}"
    );
    // What a later version has noted does not matter.
    site.set(
        broken.id,
        "notes = '[[1,\"later\",0,null,null],[2,\"replayed\",0,null,null]]', revoke_reason = 'later'",
    )
    .await;
    let row = site.row(&broken).await;
    assert_eq!((notes(&row).len(), row.revoke_reason), (1, None));
}

pub(super) async fn a_rotation_that_fails_half_way_leaves_everything_as_it_was(
    database: &Database,
) {
    let site = Site::of(database, RefreshPolicy::Strict).await;
    let reused = site.open(1).await;
    let reused = site.present_all(&reused, &[(0, 0)]).await;
    let (rotated, ended) = (site.open(2).await, site.open(3).await);
    let batch = [refresh(&rotated, 0), refresh(&reused, 0), revoke(&ended, 0)];
    let before = site.dump().await;
    for table in ["family", "event", "change", "change_head", "revocation"] {
        database.break_table(table).await;
        let failed = site.store.rotate(&batch, &TERMS, at(1)).await;
        let alone = site.store.rotate(&batch[1..2], &TERMS, at(1)).await;
        let end = Change::EndFamily {
            family: ended.id,
            reason: EndReason::RevokedByOperator,
            tokens_die_at: TOKENS_DIE_AT,
        };
        let by_operator = apply(&*site.store, end).await;
        database.mend_table(table).await;
        assert!(failed.is_err(), "{table}: {failed:?}");
        assert!(alone.is_err(), "{table}: {alone:?}");
        assert!(by_operator.is_err(), "{table}: {by_operator:?}");
        assert_eq!(site.dump().await, before, "{table}");
    }
    let outcomes = site.store.rotate(&batch, &TERMS, at(1)).await.unwrap();
    let verdicts: Vec<_> = outcomes.iter().map(verdict).collect();
    assert_eq!(verdicts, [ROTATED, Verdict::Reused, Verdict::Ended]);
    assert_eq!(site.row(&rotated).await.counter, 1);
    assert_eq!(site.store.revocations_since(0).await.unwrap().len(), 2);
}

pub(super) async fn a_refresh_needs_nothing_but_its_own_row(database: &Database) {
    let site = Site::of(database, RefreshPolicy::Standard).await;
    let family = site.open(1).await;
    for table in [
        "event",
        "change",
        "change_head",
        "revocation",
        "client",
        "end_user",
    ] {
        let row = site.row(&family).await;
        database.break_table(table).await;
        let verdict = site.verdict(refresh(&family, row.counter), at(1)).await;
        database.mend_table(table).await;
        assert_eq!(verdict, ROTATED, "{table}");
    }
    apply(&*site.store, create(client("b"))).await.unwrap();
}
