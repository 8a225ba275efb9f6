//! Thief and victim with the same refresh token: every course that this can take, held against what
//! `docs/threat-model.md` tells of it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use countersign::domain::{
    family::{EndReason, Outcome, Party, RefreshPolicy, Refusal, Turn, Verdict},
    id::FamilyId,
};

use super::sign_in::{Site, TERMS, at, cause, id, millis, refresh_by, verdict};
use crate::support::database::Database;

/// How many refreshes both make together.
const TURNS: u32 = 6;

/// How often the victim has refreshed since the theft when a course begins.
const HEAD_STARTS: [i64; 3] = [0, 1, 8];

/// The two who hold the token.
const PARTIES: [&str; 2] = ["victim", "thief"];

/// Which refresh token a party presents, as the threat model tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Presented {
    Newest,
    LastSpent { in_window: bool },
    SpentEarlier { in_window: bool },
    SpentLongAgo,
}

/// The columns of the table in the threat model.
const COLUMNS: [Presented; 6] = [
    Presented::Newest,
    Presented::LastSpent { in_window: true },
    Presented::LastSpent { in_window: false },
    Presented::SpentEarlier { in_window: true },
    Presented::SpentEarlier { in_window: false },
    Presented::SpentLongAgo,
];

/// The cells of a table in the threat model, by policy: those of the lines that begin with one, after
/// this heading.
fn table(heading: &str) -> HashMap<RefreshPolicy, Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/threat-model.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(&format!("\n### {heading}\n")).unwrap();
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let policy = cells.next()?.trim_matches('`').parse().ok()?;
        Some((policy, cells.map(str::to_owned).collect()))
    });
    let rows: HashMap<_, _> = rows.collect();
    assert_eq!(rows.len(), RefreshPolicy::ALL.len(), "{heading}: {rows:?}");
    rows
}

/// Courses that have gone alike so far: who refreshes in each turn, and whether after a long pause.
#[derive(Clone)]
struct Course {
    family: FamilyId,
    by_thief: u32,
    after_long: u32,
    now: i64,
    /// How many refreshes there were; the newest token has this counter.
    newest: i64,
    /// When the newest token came to be.
    rotated_at: i64,
    /// Which token each party holds.
    held: [i64; 2],
    is_over: bool,
    was_refused: bool,
    /// How many courses these are, which part in the turns to come.
    count: usize,
}

impl Course {
    fn party(&self, turn: u32) -> usize {
        usize::from(is_set(self.by_thief, turn))
    }

    fn presented(&self, party: usize, window: i64) -> Presented {
        let in_window = self.now - self.rotated_at < window;
        match self.newest - self.held[party] {
            0 => Presented::Newest,
            1 => Presented::LastSpent { in_window },
            2..=8 => Presented::SpentEarlier { in_window },
            _ => Presented::SpentLongAgo,
        }
    }

    /// What the course has come to, as a column of the second table.
    fn end(&self) -> usize {
        let by_one = self.by_thief == 0 || self.by_thief == (1 << TURNS) - 1;
        match () {
            () if self.is_over => 0,
            () if self.was_refused => 1,
            () if by_one => 3,
            () => 2,
        }
    }
}

fn is_set(bits: u32, turn: u32) -> bool {
    bits >> turn & 1 == 1
}

/// What every course begins with in which the victim is so many refreshes ahead.
async fn beginning(site: &Site<'_>, head_start: i64, number: &mut u128) -> Course {
    *number += 1;
    let original = site.open(*number).await;
    let turns: Vec<_> = (0..head_start).map(|counter| (counter, 0)).collect();
    let newest = site.present_all(&original, &turns).await.counter;
    assert_eq!(newest, head_start);
    Course {
        family: original.id,
        by_thief: 0,
        after_long: 0,
        now: 0,
        newest,
        rotated_at: 0,
        held: [newest, 0],
        is_over: false,
        was_refused: false,
        count: 0,
    }
}

/// Lets courses part before a turn, each going on with a copy of the family as it is by then. Of all that
/// is before the turn there is no more than there are ways to have come there.
async fn part(
    site: &Site<'_>,
    turn: u32,
    pauses: &[u32],
    courses: Vec<Course>,
    number: &mut u128,
) -> Vec<Course> {
    let (mut parted, mut copies) = (Vec::new(), Vec::new());
    let so_far = (2 << turn) - 1;
    for course in courses {
        if course.is_over {
            parted.push(course);
            continue;
        }
        for (thief, long) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let after_long = course.after_long | long << turn;
            let pauses = pauses.iter().filter(|all| **all & so_far == after_long);
            let count = pauses.count() << (TURNS - 1 - turn);
            if count == 0 {
                continue;
            }
            *number += 1;
            copies.push((course.family, *number));
            parted.push(Course {
                family: id(*number),
                by_thief: course.by_thief | thief << turn,
                after_long,
                count,
                ..course.clone()
            });
        }
    }
    site.copy_each(copies.into_iter()).await;
    parted
}

/// Lets one turn of every course happen, and holds what becomes of it against the row of the policy.
async fn take_turn(
    site: &Site<'_>,
    turn: u32,
    window: i64,
    row: &[String],
    courses: &mut [Course],
) {
    // Six short pauses are shorter than the window.
    let (short, long) = (window / 10, window.max(60_000));
    // What happens at one time goes into one batch.
    let mut moments: BTreeMap<i64, Vec<&mut Course>> = BTreeMap::new();
    for course in courses.iter_mut().filter(|course| !course.is_over) {
        course.now += if is_set(course.after_long, turn) {
            long
        } else {
            short
        };
        moments.entry(course.now).or_default().push(course);
    }
    for (now, mut courses) in moments {
        let present = |course: &&mut Course| {
            let party = course.party(turn);
            site.token_by(PARTIES[party], course.family, course.held[party])
        };
        let batch: Vec<_> = courses.iter().map(present).collect();
        let outcomes = site.store.rotate(&batch, &TERMS, at(now)).await.unwrap();
        for (course, outcome) in courses.iter_mut().zip(outcomes) {
            let party = course.party(turn);
            let presented = course.presented(party, window);
            let column = COLUMNS.iter().position(|column| *column == presented);
            let told = &row[column.unwrap()];
            assert_eq!(
                name(&outcome),
                told,
                "{presented:?} by the {} in turn {turn} of {:06b} {:06b}: {outcome:?}",
                PARTIES[party],
                course.by_thief,
                course.after_long
            );
            let Outcome::Judged { family, .. } = outcome else {
                panic!()
            };
            match told.as_str() {
                "refreshed" => {
                    course.newest += 1;
                    course.rotated_at = now;
                }
                "ended" => {
                    course.is_over = true;
                    assert_eq!(family.revoke_reason, Some(EndReason::Reuse));
                    let found_out = &family.notes.iter().last().unwrap().party;
                    assert_eq!(*found_out, Party::of(&cause(PARTIES[party])));
                }
                "refused" => course.was_refused = true,
                "same successor" | "same token" => {}
                other => panic!("{other} is no outcome"),
            }
            assert_eq!(family.counter, course.newest);
            if !course.is_over && told != "refused" {
                course.held[party] = course.newest;
            }
        }
    }
}

/// What the threat model calls an outcome.
fn name(outcome: &Outcome) -> &'static str {
    match verdict(outcome) {
        Verdict::Granted(Turn::Rotated) => "refreshed",
        Verdict::Granted(Turn::Kept) => "same token",
        Verdict::Granted(Turn::Replayed { .. }) => "same successor",
        Verdict::Refused(Refusal::Superseded) => "refused",
        Verdict::Reused => "ended",
        other => panic!("{other:?}"),
    }
}

pub(super) async fn a_stolen_token_comes_to_what_the_threat_model_tells(database: &Database) {
    let rules = table("One token, two holders");
    let counts = table("Every course of six refreshes");
    let mut number = 0;
    let mut ended = 0;
    for (client, policy) in ["a", "b", "c", "d"].into_iter().zip(RefreshPolicy::ALL) {
        let user = 1 + u128::from(client.as_bytes()[0]);
        let site = Site::at(database, database.open().await, client, user, *policy).await;
        let window = millis(policy.window());
        // Without rotation nobody is ahead.
        let head_starts = if *policy == RefreshPolicy::None { 1 } else { 3 };
        for head_start in &HEAD_STARTS[..head_starts] {
            // A head start makes a difference to the first turns only.
            let pauses = match head_start {
                0 => (0..1 << TURNS).collect(),
                _ => vec![0, 1, 2, 62, 63],
            };
            let mut courses = vec![beginning(&site, *head_start, &mut number).await];
            for turn in 0..TURNS {
                courses = part(&site, turn, &pauses, courses, &mut number).await;
                take_turn(&site, turn, window, &rules[policy], &mut courses).await;
            }
            let mut ends = [0; 4];
            for course in &courses {
                ends[course.end()] += course.count;
                ended += i64::from(course.is_over);
            }
            assert_eq!(ends.iter().sum::<usize>(), pauses.len() << TURNS);
            if *head_start == 0 {
                let ends = ends.map(|count| count.to_string());
                assert_eq!(ends[..], counts[policy][..], "{policy}");
            }
        }
    }
    // Nobody was found out without a word.
    let events: Vec<(i64,)> = database
        .rows("select count(*) from event where type = 'family.reuse_detected'")
        .await;
    assert_eq!(events, [(ended,)]);
}

/// A hole elsewhere: the token before the newest is always good and moves nothing, so that two who
/// take turns at the same pace are never found out.
pub(super) async fn a_leapfrogging_thief_is_found_out_at_the_end_of_the_window(
    database: &Database,
) {
    let mut number = 0;
    for (client, policy) in [("a", RefreshPolicy::Standard), ("b", RefreshPolicy::Shared)] {
        let user = 1 + u128::from(client.as_bytes()[0]);
        let site = Site::at(database, database.open().await, client, user, policy).await;
        let window = millis(policy.window());
        for (pace, is_found_out) in [
            (1, false),
            (window - 1, false),
            (window, true),
            (window + 1, true),
            (10 * window, true),
        ] {
            number += 1;
            let family = site.open(number).await;
            let mut held = [0, 0];
            let mut verdicts = Vec::new();
            for turn in 0..20 {
                let party = turn % 2;
                let token = refresh_by(PARTIES[party], &family, held[party]);
                let now = at(pace * i64::try_from(turn).unwrap());
                let outcome = site.present(token, now).await;
                let Outcome::Judged {
                    verdict, family, ..
                } = outcome
                else {
                    panic!()
                };
                held[party] = family.counter;
                verdicts.push(verdict);
                if family.revoked_at.is_some() {
                    break;
                }
            }
            // The first time the thief comes too late is the last.
            let expected = if is_found_out { 2 } else { 20 };
            assert_eq!(verdicts.len(), expected, "{policy} {pace}: {verdicts:?}");
            assert_eq!(verdicts.contains(&Verdict::Reused), is_found_out);
        }
    }
}

/// A hole elsewhere: the window is measured from the last answer, so that whoever holds any older
/// token keeps it open by asking often enough.
pub(super) async fn a_window_is_not_kept_open_by_whoever_stays_in_it(database: &Database) {
    let mut number = 0;
    for (client, policy) in [("a", RefreshPolicy::Standard), ("b", RefreshPolicy::Shared)] {
        let user = 1 + u128::from(client.as_bytes()[0]);
        let site = Site::at(database, database.open().await, client, user, policy).await;
        let window = millis(policy.window());
        for pace in [window / 2, window / 3, window / 10, window / 30] {
            number += 1;
            let family = site.open(number).await;
            let family = site.present_all(&family, &[(0, 0), (1, 0), (2, 0)]).await;
            let mut now = 0;
            while now < window {
                let token = refresh_by("thief", &family, 2);
                let verdict = site.verdict(token, at(now)).await;
                assert!(matches!(verdict, Verdict::Granted(Turn::Replayed { .. })));
                now += pace;
            }
            // Nor does one that is older.
            let oldest = match policy {
                RefreshPolicy::Shared => 1,
                _ => 2,
            };
            let late = refresh_by("thief", &family, oldest);
            assert_eq!(
                site.verdict(late, at(window)).await,
                Verdict::Reused,
                "{policy} {pace}"
            );
        }
        // Whoever uses the successor closes it.
        number += 1;
        let family = site.open(number).await;
        site.present_all(&family, &[(0, 0), (1, 1)]).await;
        let expected = match policy {
            RefreshPolicy::Shared => Verdict::Refused(Refusal::Superseded),
            _ => Verdict::Reused,
        };
        let token = refresh_by("thief", &family, 0);
        assert_eq!(site.verdict(token, at(1)).await, expected);
    }
}
