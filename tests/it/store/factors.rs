//! Second factors.

use std::time::Duration;

use countersign::{
    domain::{
        change::{Change, EventType},
        event::EventQuery,
        factor::{FactorChange, Factors, Passkey, PasskeyId, SealedTotp, Totp},
        id::{MasterKeyId, UserId},
        key::SealedKey,
        secret::SecretHash,
        user::User,
    },
    store::{Store, StoreError},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::sample::{
    NOW, TOKENS_DIE_AT, apply, assert_conflict, created_user, delete_user, put, schedule,
    update_user, user,
};
use crate::support::database::Database;

fn master(number: u128) -> MasterKeyId {
    MasterKeyId::from_uuid(Uuid::from_u128(number))
}

fn totp(number: u8) -> Totp {
    Totp {
        sealed: SealedKey {
            // That of the schedule.
            master_id: master(7),
            ciphertext: vec![0, 255, number],
        },
        last_step: 100,
        created_at: NOW,
    }
}

fn passkey(number: u8, subject: UserId) -> Passkey {
    Passkey {
        id: PasskeyId::from_bytes(&[0, b'\'', number]).unwrap(),
        subject,
        name: format!("Key № {number} '\"\\"),
        credential: r#"{"cred":"ü'"}"#.to_owned(),
        counter: 0,
        created_at: NOW.plus(Duration::from_secs(number.into())),
        last_used_at: None,
    }
}

fn hash(number: u128) -> SecretHash {
    SecretHash::of(&number.to_string())
}

fn of(user: &User, change: FactorChange) -> Change {
    Change::ChangeFactors {
        subject: user.id,
        user_epoch: user.session_epoch,
        is_first: false,
        change,
    }
}

/// The same by somebody who has proved no second factor.
fn first_of(user: &User, change: FactorChange) -> Change {
    Change::ChangeFactors {
        subject: user.id,
        user_epoch: user.session_epoch,
        is_first: true,
        change,
    }
}

fn add_passkey(number: u8, user: &User) -> Change {
    of(
        user,
        FactorChange::AddPasskey(Box::new(passkey(number, user.id))),
    )
}

fn remove_passkey(number: u8, user: &User) -> Change {
    of(
        user,
        FactorChange::RemovePasskey(passkey(number, user.id).id),
    )
}

fn make_codes(user: &User, codes: impl Iterator<Item = u128>) -> Change {
    of(
        user,
        FactorChange::MakeRecoveryCodes(codes.map(hash).collect()),
    )
}

/// A user who has everything: an app, three recovery codes, two passkeys.
async fn equipped(store: &dyn Store, number: u128) -> User {
    let user = created_user(store, user(number)).await;
    let key = u8::try_from(number).unwrap() * 10;
    for change in [
        of(&user, FactorChange::AddTotp(totp(key))),
        make_codes(&user, 1..=3),
        add_passkey(key + 2, &user),
        add_passkey(key + 1, &user),
    ] {
        apply(store, change).await.unwrap();
    }
    user
}

async fn opened(database: &Database) -> std::sync::Arc<dyn Store> {
    let store = database.open().await;
    apply(&*store, put(schedule(0, Vec::new()))).await.unwrap();
    store
}

pub(super) async fn factors_are_read_back_as_they_were_added(database: &Database) {
    let store = opened(database).await;
    let other = equipped(&*store, 2).await;
    let user = equipped(&*store, 1).await;
    let factors = store.factors(user.id).await.unwrap();
    let expected = Factors {
        totp: Some(totp(10)),
        recovery_codes: 3,
        passkeys: vec![passkey(11, user.id), passkey(12, user.id)],
    };
    assert_eq!(factors, expected);
    let found = store.passkey(&passkey(22, other.id).id).await.unwrap();
    assert_eq!(found, Some(passkey(22, other.id)));
    let nobody = UserId::from_uuid(Uuid::from_u128(99));
    assert_eq!(store.factors(nobody).await.unwrap(), Factors::default());
    assert!(
        store
            .passkey(&passkey(99, nobody).id)
            .await
            .unwrap()
            .is_none()
    );
}

pub(super) async fn what_cannot_be_added_or_removed_conflicts_and_changes_nothing(
    database: &Database,
) {
    let store = opened(database).await;
    let (one, other) = (equipped(&*store, 1).await, equipped(&*store, 2).await);
    let elsewhere = Totp {
        sealed: SealedKey {
            master_id: master(8),
            ..totp(1).sealed
        },
        ..totp(1)
    };
    let bare = created_user(&*store, user(3)).await;
    let of_another_epoch = User {
        session_epoch: bare.session_epoch ^ 1,
        ..bare.clone()
    };
    for change in [
        of(&one, FactorChange::AddTotp(totp(1))),
        // Nothing is sealed under a master key that is not the primary one.
        of(&bare, FactorChange::AddTotp(elsewhere)),
        of(&of_another_epoch, FactorChange::AddTotp(totp(1))),
        make_codes(&of_another_epoch, 1..=3),
        of(&bare, FactorChange::RemoveTotp),
        of(&bare, FactorChange::UseRecoveryCode(hash(1))),
        of(&one, FactorChange::UseRecoveryCode(hash(4))),
        first_of(&one, FactorChange::RemoveTotp),
        // A passkey belongs to one user.
        of(
            &one,
            FactorChange::AddPasskey(Box::new(Passkey {
                subject: one.id,
                ..passkey(21, other.id)
            })),
        ),
        of(&one, FactorChange::RemovePasskey(passkey(21, other.id).id)),
        remove_passkey(99, &one),
        Change::ResetFactors {
            id: UserId::from_uuid(Uuid::from_u128(99)),
            tokens_die_at: TOKENS_DIE_AT,
        },
    ] {
        assert_conflict(database, &*store, change).await;
    }
    // Nor does a disabled user change anything.
    let disabled = User {
        disabled: true,
        ..bare.clone()
    };
    apply(&*store, update_user(disabled)).await.unwrap();
    let disabled = store.user(bare.id).await.unwrap().unwrap();
    assert_conflict(database, &*store, make_codes(&disabled, 1..=3)).await;
}

/// RFC 6238 §5.2: "The verifier MUST NOT accept the second attempt of the OTP after the successful
/// validation has been issued for the first OTP."
pub(super) async fn of_32_who_present_a_one_time_password_at_once_one_has_it(database: &Database) {
    let store = opened(database).await;
    let user = equipped(&*store, 1).await;
    let mut takers = JoinSet::new();
    for _ in 0..32 {
        let store = store.clone();
        takers.spawn(async move { store.take_totp_step(user.id, 101).await.unwrap() });
    }
    let taken = takers.join_all().await.into_iter().filter(|won| *won);
    assert_eq!(taken.count(), 1);
    // Nor one before it, nor that of the enrolment.
    for (step, expected) in [(100, false), (101, false), (102, true), (101, false)] {
        let taken = store.take_totp_step(user.id, step).await.unwrap();
        assert_eq!(taken, expected, "{step}");
    }
    let nobody = UserId::from_uuid(Uuid::from_u128(99));
    assert!(!store.take_totp_step(nobody, 1000).await.unwrap());
}

/// Two who know the password, or two tabs: nobody enrols a factor beside one that it has not proved.
pub(super) async fn of_32_who_enrol_a_first_factor_at_once_one_does(database: &Database) {
    let store = opened(database).await;
    let user = created_user(&*store, user(1)).await;
    let mut writers = JoinSet::new();
    for number in 0..32 {
        let adding = if number % 2 == 0 {
            FactorChange::AddTotp(totp(number))
        } else {
            FactorChange::AddPasskey(Box::new(passkey(number, user.id)))
        };
        let (store, change) = (store.clone(), first_of(&user, adding));
        writers.spawn(async move {
            match apply(&*store, change).await {
                Ok(_) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let won = writers.join_all().await.into_iter().filter(|won| *won);
    assert_eq!(won.count(), 1);
    let factors = store.factors(user.id).await.unwrap();
    assert_eq!(
        usize::from(factors.totp.is_some()) + factors.passkeys.len(),
        1
    );
    // Recovery codes alone are no factor, and who has proved the first one adds another.
    apply(&*store, add_passkey(40, &user)).await.unwrap();
    let bare = created_user(&*store, super::sample::user(2)).await;
    apply(&*store, make_codes(&bare, 1..=3)).await.unwrap();
    let first = first_of(&bare, FactorChange::AddTotp(totp(1)));
    apply(&*store, first).await.unwrap();
}

pub(super) async fn of_32_who_present_a_recovery_code_at_once_one_uses_it(database: &Database) {
    let store = opened(database).await;
    let user = equipped(&*store, 1).await;
    let mut writers = JoinSet::new();
    for _ in 0..32 {
        let (store, user) = (store.clone(), user.clone());
        writers.spawn(async move {
            let using = of(&user, FactorChange::UseRecoveryCode(hash(2)));
            match apply(&*store, using).await {
                Ok(_) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let won = writers.join_all().await.into_iter().filter(|won| *won);
    assert_eq!(won.count(), 1);
    assert_eq!(store.factors(user.id).await.unwrap().recovery_codes, 2);
    let query = EventQuery {
        kinds: vec![EventType::RecoveryCodeUsed],
        limit: 99,
        ..EventQuery::default()
    };
    assert_eq!(store.events(&query).await.unwrap().len(), 1);
}

pub(super) async fn new_recovery_codes_replace_all_that_there_were(database: &Database) {
    let store = opened(database).await;
    let (user, other) = (equipped(&*store, 1).await, equipped(&*store, 2).await);
    apply(&*store, make_codes(&user, 4..=13)).await.unwrap();
    let old = of(&user, FactorChange::UseRecoveryCode(hash(1)));
    assert_conflict(database, &*store, old).await;
    let new = of(&user, FactorChange::UseRecoveryCode(hash(13)));
    apply(&*store, new).await.unwrap();
    assert_eq!(store.factors(user.id).await.unwrap().recovery_codes, 9);
    assert_eq!(store.factors(other.id).await.unwrap().recovery_codes, 3);
}

/// Web Authentication §7.2, step 22: a counter that does not go on is a sign of a copy.
pub(super) async fn of_32_uses_of_a_passkey_with_one_count_one_is_noted(database: &Database) {
    let store = opened(database).await;
    let user = equipped(&*store, 1).await;
    let counted = |counter| Passkey {
        counter,
        credential: "{}".to_owned(),
        ..passkey(11, user.id)
    };
    let at = NOW.plus(Duration::from_secs(5));
    // Most do not count.
    for _ in 0..2 {
        assert!(store.note_passkey(&counted(0), at).await.unwrap());
    }
    let mut takers = JoinSet::new();
    for _ in 0..32 {
        let (store, passkey) = (store.clone(), counted(7));
        takers.spawn(async move { store.note_passkey(&passkey, at).await.unwrap() });
    }
    let noted = takers.join_all().await.into_iter().filter(|noted| *noted);
    assert_eq!(noted.count(), 1);
    for (counter, expected) in [(0, false), (6, false), (7, false), (8, true)] {
        let noted = store.note_passkey(&counted(counter), at).await.unwrap();
        assert_eq!(noted, expected, "{counter}");
    }
    let stored = store.passkey(&counted(0).id).await.unwrap().unwrap();
    let expected = Passkey {
        last_used_at: Some(at),
        ..counted(8)
    };
    assert_eq!(stored, expected);
}

pub(super) async fn recovery_codes_go_with_the_last_factor(database: &Database) {
    let store = opened(database).await;
    let user = equipped(&*store, 1).await;
    for (change, left) in [
        (of(&user, FactorChange::RemoveTotp), 3),
        (remove_passkey(11, &user), 3),
        (remove_passkey(12, &user), 0),
    ] {
        apply(&*store, change).await.unwrap();
        let factors = store.factors(user.id).await.unwrap();
        assert_eq!(factors.recovery_codes, left);
    }
    assert_eq!(store.factors(user.id).await.unwrap(), Factors::default());
}

pub(super) async fn the_last_factor_of_a_user_who_needs_one_stays(database: &Database) {
    let store = opened(database).await;
    let user = equipped(&*store, 1).await;
    let required = User {
        second_factor_required: true,
        ..user.clone()
    };
    apply(&*store, update_user(required)).await.unwrap();
    assert!(
        store
            .user(user.id)
            .await
            .unwrap()
            .unwrap()
            .second_factor_required
    );
    for change in [
        of(&user, FactorChange::RemoveTotp),
        of(&user, FactorChange::UseRecoveryCode(hash(1))),
    ] {
        apply(&*store, change).await.unwrap();
    }
    // Both at once: one stays, whichever it is.
    let mut removers = JoinSet::new();
    for number in [11, 12] {
        let (store, change) = (store.clone(), remove_passkey(number, &user));
        removers.spawn(async move { apply(&*store, change).await.is_ok() });
    }
    let removed = removers.join_all().await.into_iter().filter(|won| *won);
    assert_eq!(removed.count(), 1);
    let factors = store.factors(user.id).await.unwrap();
    assert_eq!((factors.passkeys.len(), factors.recovery_codes), (1, 2));
}

pub(super) async fn what_a_user_has_goes_with_it_or_by_a_reset(database: &Database) {
    let store = opened(database).await;
    let (one, other) = (equipped(&*store, 1).await, equipped(&*store, 2).await);
    let reset = Change::ResetFactors {
        id: one.id,
        tokens_die_at: TOKENS_DIE_AT,
    };
    apply(&*store, reset).await.unwrap();
    assert_eq!(store.factors(one.id).await.unwrap(), Factors::default());
    assert!(store.factors(other.id).await.unwrap().is_enrolled());
    let after = store.user(one.id).await.unwrap().unwrap();
    assert_ne!(after.session_epoch, one.session_epoch);
    assert!(after.tokens_not_before.is_some());
    // Whoever had begun to change something may do so no more.
    assert_conflict(database, &*store, add_passkey(1, &one)).await;
    apply(&*store, delete_user(&other)).await.unwrap();
    let left: Vec<(i64, i64, i64)> = database
        .rows(
            "select (select count(*) from totp), (select count(*) from recovery_code), \
             (select count(*) from passkey)",
        )
        .await;
    assert_eq!(left, [(0, 0, 0)]);
}

pub(super) async fn sealed_factors_are_counted_and_sealed_anew_once(database: &Database) {
    let store = opened(database).await;
    let (one, other) = (equipped(&*store, 1).await, equipped(&*store, 2).await);
    assert_eq!(store.factors_sealed().await.unwrap(), [(master(7), 2)]);
    let elsewhere = |limit| store.factors_sealed_elsewhere(master(8), limit);
    let all = elsewhere(10).await.unwrap();
    let sealed = |user: &User, number| SealedTotp {
        subject: user.id,
        sealed: totp(number).sealed,
    };
    assert_eq!(all, [sealed(&one, 10), sealed(&other, 20)]);
    assert_eq!(elsewhere(1).await.unwrap(), all[..1]);
    let anew = SealedKey {
        master_id: master(8),
        ciphertext: vec![1, 2, 3],
    };
    // Not before it is the primary one.
    assert!(!store.reseal_factor(&all[0], &anew).await.unwrap());
    let mut promoted = schedule(1, Vec::new());
    promoted.primary_master = Some(master(8));
    apply(&*store, put(promoted)).await.unwrap();
    assert!(store.reseal_factor(&all[0], &anew).await.unwrap());
    assert!(!store.reseal_factor(&all[0], &anew).await.unwrap());
    let now = store.factors(one.id).await.unwrap().totp.unwrap();
    let expected = Totp {
        sealed: anew,
        ..totp(10)
    };
    assert_eq!(now, expected);
    let counted = store.factors_sealed().await.unwrap();
    assert_eq!(counted, [(master(7), 1), (master(8), 1)]);
    assert_eq!(elsewhere(10).await.unwrap(), all[1..]);
}

pub(super) async fn every_change_of_factors_leaves_its_event_and_no_secret(database: &Database) {
    let store = opened(database).await;
    let user = created_user(&*store, user(1)).await;
    let reset = Change::ResetFactors {
        id: user.id,
        tokens_die_at: TOKENS_DIE_AT,
    };
    let changes = [
        (
            of(&user, FactorChange::AddTotp(totp(10))),
            EventType::TotpEnrolled,
        ),
        (make_codes(&user, 1..=3), EventType::RecoveryCodesMade),
        (
            of(&user, FactorChange::UseRecoveryCode(hash(1))),
            EventType::RecoveryCodeUsed,
        ),
        (add_passkey(1, &user), EventType::PasskeyAdded),
        (remove_passkey(1, &user), EventType::PasskeyRemoved),
        (of(&user, FactorChange::RemoveTotp), EventType::TotpRemoved),
        (reset, EventType::UserFactorsReset),
    ];
    for (change, kind) in changes {
        apply(&*store, change).await.unwrap();
        let query = EventQuery {
            subject: Some(user.id.to_string()),
            latest_first: true,
            limit: 1,
            ..EventQuery::default()
        };
        let event = store.events(&query).await.unwrap().remove(0);
        assert_eq!(event.kind, kind.as_str());
        let text = format!("{:?} {:?}", event.before, event.after);
        assert!(!text.contains("cred"), "{text}");
    }
}
