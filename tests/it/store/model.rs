//! Generated histories of two families, held against a reference that is written apart from the rule
//! it stands for: it knows which token lives and which one it took the place of, and no more.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use countersign::{
    clock::Timestamp,
    domain::{
        change::{Cause, Change, Changes, Position},
        client::Client,
        event::{Event, EventQuery},
        family::{
            EndReason, Family, Grant, Intent, Note, NoteKind, Outcome, Party, Presentation,
            RefreshPolicy, Refusal, Terms, Turn, Verdict,
        },
        id::ClientId,
        user::User,
    },
    store::Store,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::{runtime::Handle, task::block_in_place};

use super::{
    sample::{NOW, TOKENS_DIE_AT, apply, create, delete},
    sign_in::{IDLE, Site, TERMS, at, cause, millis, refresh, resources, scope, verdict},
};
use crate::support::database::{Database, Engine};

/// Who presents a token, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Client,
    OtherClient,
    /// Without the key that the family may be bound to, or with another one.
    NoKey,
    OtherKey,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    All,
    Less,
    WiderScope,
    ForeignResource,
    Both,
    TheEnd,
}

/// A presentation of a token that has been given out: so many before the last one.
#[derive(Clone, Copy, Debug)]
struct Presented {
    family: usize,
    back: usize,
    by: By,
    wish: Wish,
    /// The answer does not arrive.
    is_lost: bool,
    /// Made by somebody who has got hold of the MAC key before.
    is_forged: bool,
}

/// A moment, as so many milliseconds after the end of something.
#[derive(Clone, Copy, Debug)]
enum End {
    Window(i64),
    Idle(i64),
    Life(i64),
}

#[derive(Clone, Debug)]
enum Step {
    Present(Presented),
    EndByOperator(usize),
    Wait(i64),
    WaitUntil(usize, End),
    /// A clock that is behind.
    Back(i64),
    DisableClient(bool),
    EndSessionsOfClient,
    ReplaceClient,
    DisableUser(bool),
    ChangePassword,
    /// The database forgets so many of the last changes of a family.
    Forget(usize, usize),
    NewMacKey,
}

#[derive(Clone, Debug)]
struct History {
    policy: RefreshPolicy,
    is_bound: bool,
    steps: Vec<Step>,
}

fn presented(families: usize) -> impl Strategy<Value = Presented> {
    let by = prop_oneof![
        12 => Just(By::Client),
        1 => Just(By::OtherClient),
        1 => Just(By::NoKey),
        1 => Just(By::OtherKey),
    ];
    let wish = prop_oneof![
        10 => Just(Wish::All),
        1 => Just(Wish::Less),
        1 => Just(Wish::WiderScope),
        1 => Just(Wish::ForeignResource),
        1 => Just(Wish::Both),
        1 => Just(Wish::TheEnd),
    ];
    let back = prop_oneof![10 => Just(0usize), 5 => Just(1), 2 => Just(2), 1 => 3usize..12];
    let (is_lost, is_forged) = (prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    (0..families, back, by, wish, is_lost, is_forged).prop_map(
        |(family, back, by, wish, is_lost, is_forged)| Presented {
            family,
            back,
            by,
            wish,
            is_lost,
            is_forged,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let by_one = -1i64..=1;
    let moment = prop_oneof![
        8 => by_one.clone().prop_map(End::Window),
        2 => by_one.clone().prop_map(End::Idle),
        1 => by_one.prop_map(End::Life),
    ];
    prop_oneof![
        40 => presented(2).prop_map(Step::Present),
        1 => (0usize..2).prop_map(Step::EndByOperator),
        6 => prop_oneof![0i64..3, 1000i64..40_000, 60_000i64..1_000_000].prop_map(Step::Wait),
        8 => (0usize..2, moment).prop_map(|(family, moment)| Step::WaitUntil(family, moment)),
        3 => (0i64..5000).prop_map(Step::Back),
        1 => any::<bool>().prop_map(Step::DisableClient),
        1 => any::<bool>().prop_map(Step::DisableUser),
        1 => prop_oneof![
            Just(Step::EndSessionsOfClient),
            Just(Step::ReplaceClient),
            Just(Step::ChangePassword),
        ],
        3 => (0usize..2, 1usize..4).prop_map(|(family, count)| Step::Forget(family, count)),
        2 => Just(Step::NewMacKey),
    ]
}

fn histories() -> impl Strategy<Value = History> {
    let policy = prop_oneof![
        4 => Just(RefreshPolicy::Standard),
        2 => Just(RefreshPolicy::Shared),
        1 => Just(RefreshPolicy::Strict),
        1 => Just(RefreshPolicy::None),
    ];
    let steps = prop::collection::vec(step(), 1..40);
    (policy, any::<bool>(), steps).prop_map(|(policy, is_bound, steps)| History {
        policy,
        is_bound,
        steps,
    })
}

/// What is expected of a family.
#[derive(Clone)]
struct Expected {
    /// The row, but for the notes.
    row: Family,
    notes: Vec<Note>,
}

impl Expected {
    fn note(&mut self, kind: NoteKind, by: &Cause, now: i64) {
        if self.notes.len() == 8 {
            let replay = self
                .notes
                .iter()
                .position(|note| note.kind == NoteKind::Replayed);
            self.notes.remove(replay.unwrap_or_default());
        }
        self.notes.push(Note {
            at: at(now),
            kind,
            counter: self.row.counter,
            party: Party::of(by),
        });
    }

    fn end(&mut self, reason: EndReason, now: i64) {
        self.row.revoked_at = Some(at(now));
        self.row.revoke_reason = Some(reason);
    }
}

/// The state of everything that a verdict depends on, and the rule.
struct Reference {
    policy: RefreshPolicy,
    now: i64,
    mac_version: u32,
    client: Side,
    user: Side,
    /// From when on new tokens count.
    tokens_from: Option<i64>,
}

/// What has become of the client or the user.
#[derive(Clone, Copy, Default)]
struct Side {
    is_disabled: bool,
    /// The sign-ins of the history are of another time.
    has_moved_on: bool,
}

impl Reference {
    fn window(&self) -> i64 {
        match self.policy {
            RefreshPolicy::None | RefreshPolicy::Strict => 0,
            RefreshPolicy::Shared => 15 * 60 * 1000,
            RefreshPolicy::Standard => 30 * 1000,
        }
    }

    fn why_over(&self, row: &Family) -> Option<Refusal> {
        let now = at(self.now);
        [
            (row.revoked_at.is_some(), Refusal::Ended),
            (now >= row.expires_at, Refusal::Expired),
            (now >= row.idle_expires_at, Refusal::IdleExpired),
            (self.client.is_disabled, Refusal::ClientDisabled),
            (self.user.is_disabled, Refusal::UserDisabled),
            (self.client.has_moved_on, Refusal::ClientSessionsEnded),
            (self.user.has_moved_on, Refusal::UserSessionsEnded),
        ]
        .into_iter()
        .find_map(|(is_so, refusal)| is_so.then_some(refusal))
    }

    /// Presents a token: what must become of it. `family` is then as it must be.
    fn present(
        &self,
        family: &mut Expected,
        (token, mac_version): Token,
        presented: &Presented,
        by: &Cause,
    ) -> Verdict {
        let over = self.why_over(&family.row);
        let is_bound = family.row.grant.dpop_jkt.is_some();
        let has_key = matches!(presented.by, By::Client) || !is_bound;
        if presented.by == By::OtherClient {
            return Verdict::Refused(Refusal::OtherClient);
        }
        let row = &family.row;
        let is_possible = match token {
            ahead if ahead > row.counter => mac_version >= row.mac_version,
            of_this_key if of_this_key >= row.mac_since => mac_version == row.mac_version,
            _ => mac_version < row.mac_version,
        };
        if presented.wish == Wish::TheEnd {
            if !is_possible {
                return Verdict::Refused(Refusal::Unknown);
            }
            if over.is_some() {
                return Verdict::Refused(Refusal::Ended);
            }
            family.end(EndReason::RevokedByClient, self.now);
            return Verdict::Ended;
        }
        if !has_key {
            return Verdict::Refused(Refusal::OtherKey);
        }
        if !is_possible {
            return Verdict::Refused(Refusal::Unknown);
        }
        if let Some(refusal) = over {
            return Verdict::Refused(refusal);
        }
        let live = family.row.counter;
        let is_fresh = {
            let age = self.now - (family.row.rotated_at.millis() - NOW.millis());
            self.window() > 0 && age < self.window()
        };
        let is_parent = token == live - 1;
        if token < live && !(is_parent && is_fresh) {
            if self.policy == RefreshPolicy::Shared && is_fresh && token >= live - 8 {
                return Verdict::Refused(Refusal::Superseded);
            }
            family.end(EndReason::Reuse, self.now);
            family.note(NoteKind::Reused, by, self.now);
            return Verdict::Reused;
        }
        match presented.wish {
            Wish::WiderScope | Wish::Both => return Verdict::Refused(Refusal::Scope),
            Wish::ForeignResource => return Verdict::Refused(Refusal::Target),
            Wish::All | Wish::Less | Wish::TheEnd => {}
        }
        if self.tokens_from.is_some_and(|from| from - self.now > 2000) {
            return Verdict::Refused(Refusal::NotYet);
        }
        if token < live {
            let is_noted = |note: &Note| (note.kind, note.counter) == (NoteKind::Replayed, live);
            let is_first = !family.notes.iter().any(is_noted);
            if is_first {
                family.note(NoteKind::Replayed, by, self.now);
            }
            return Verdict::Granted(Turn::Replayed { is_first });
        }
        let turn = if token > live {
            family.note(NoteKind::Recovered, by, self.now);
            Turn::Recovered
        } else if self.policy == RefreshPolicy::None {
            Turn::Kept
        } else {
            Turn::Rotated
        };
        let row = &mut family.row;
        if turn != Turn::Kept {
            if self.mac_version != mac_version {
                row.mac_since = token + 1;
            } else if row.mac_version != mac_version {
                row.mac_since = token;
            }
            row.counter = token + 1;
            row.rotated_at = at(self.now);
            row.mac_version = self.mac_version;
        }
        row.idle_expires_at = at(self.now + millis(IDLE)).min(row.expires_at);
        row.last = Party::of(by);
        Verdict::Granted(turn)
    }
}

/// The counter of a token, and the version of the MAC key that it was minted with.
type Token = (i64, u32);

/// One of the families of a history.
struct Line {
    expected: Expected,
    /// How the family was when it was opened, and how it was last seen.
    opened: Family,
    stored: Family,
    /// The tokens that their client has learnt of, the latest last.
    learnt: Vec<Token>,
    /// How it was before each change.
    before: Vec<Expected>,
    /// What each spent token was exchanged for.
    successors: HashMap<i64, Token>,
}

impl Line {
    fn of(opened: Family) -> Self {
        Self {
            expected: Expected {
                row: opened.clone(),
                notes: Vec::new(),
            },
            stored: opened.clone(),
            opened,
            learnt: vec![(0, TERMS.mac_version)],
            before: Vec::new(),
            successors: HashMap::new(),
        }
    }

    /// Holds whatever the rule may be.
    fn hold_promises(&mut self, token: i64, outcome: &Outcome) {
        let before = &self.stored;
        let Outcome::Judged {
            verdict, family, ..
        } = outcome
        else {
            panic!("{outcome:?}")
        };
        let successor = (family.counter, family.mac_version);
        match verdict {
            Verdict::Granted(Turn::Rotated) => {
                let earlier = self.successors.insert(token, successor);
                assert_eq!(earlier, None, "a token was exchanged twice");
            }
            Verdict::Granted(Turn::Recovered) => {
                self.successors.insert(token, successor);
            }
            Verdict::Granted(Turn::Replayed { .. }) => {
                let first = self.successors[&token];
                assert_eq!(successor, first, "a retry got another successor");
            }
            Verdict::Granted(Turn::Kept) => assert_eq!(family.counter, token),
            Verdict::Refused(_) => assert_eq!(&**family, before, "a refusal changed something"),
            Verdict::Reused | Verdict::Ended => assert!(family.revoked_at.is_some()),
        }
        if before.revoked_at.is_some() {
            assert_eq!(&**family, before, "what had ended was changed");
        }
        if family.counter == before.counter {
            assert_eq!(family.rotated_at, before.rotated_at, "the window was moved");
        } else {
            assert!(family.counter > before.counter);
        }
        assert_eq!(family.grant, self.opened.grant, "the grant was changed");
        assert_eq!(
            family.expires_at, self.opened.expires_at,
            "the end was moved"
        );
        assert!(family.idle_expires_at <= family.expires_at);
        assert_eq!(family.first, self.opened.first);
        assert_eq!(family.created_at, self.opened.created_at);
    }
}

/// A history on its way.
struct Play<'a> {
    site: Site<'a>,
    reference: Reference,
    lines: Vec<Line>,
    position: Position,
}

impl<'a> Play<'a> {
    async fn begin(
        database: &'a Database,
        store: &Arc<dyn Store>,
        position: Position,
        history: &History,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("client-{number}");
        let site = Site::at(
            database,
            store.clone(),
            &name,
            number.into(),
            history.policy,
        )
        .await;
        let grant = Grant {
            dpop_jkt: history.is_bound.then(|| "key".to_owned()),
            ..site.grant().await
        };
        let mut lines = Vec::new();
        for line in 0..2 {
            let family = u128::from(number * 2 + line);
            lines.push(Line::of(site.open_for(family, grant.clone()).await));
        }
        let mut play = Self {
            site,
            reference: Reference {
                policy: history.policy,
                now: 0,
                mac_version: TERMS.mac_version,
                client: Side::default(),
                user: Side::default(),
                tokens_from: None,
            },
            lines,
            position,
        };
        play.position.seq = play.changes().await.head;
        play
    }

    async fn step(&mut self, step: &Step) {
        let store = self.site.store.clone();
        match step {
            Step::Present(presented) => self.present(presented).await,
            Step::EndByOperator(family) => {
                let line = &mut self.lines[*family];
                let change = Change::EndFamily {
                    family: line.opened.id,
                    reason: EndReason::RevokedByOperator,
                    tokens_die_at: TOKENS_DIE_AT,
                };
                let now = at(self.reference.now);
                let ended = store.apply(&change, &cause("operator"), now).await;
                assert_eq!(ended.is_ok(), line.expected.row.revoked_at.is_none());
                if ended.is_ok() {
                    line.before.push(line.expected.clone());
                    line.expected
                        .end(EndReason::RevokedByOperator, self.reference.now);
                    self.expect_end_of(*family).await;
                }
            }
            Step::Wait(millis) => self.reference.now += millis,
            Step::WaitUntil(family, moment) => {
                let row = &self.lines[*family].expected.row;
                let (end, by) = match moment {
                    End::Window(by) => {
                        let window = self.reference.window();
                        (Timestamp::from_millis(row.rotated_at.millis() + window), by)
                    }
                    End::Idle(by) => (row.idle_expires_at, by),
                    End::Life(by) => (row.expires_at, by),
                };
                let moment = end.millis() - NOW.millis() + by;
                self.reference.now = self.reference.now.max(moment);
            }
            Step::Back(millis) => self.reference.now -= millis,
            Step::DisableClient(disabled) => {
                let disabled = *disabled;
                self.site
                    .change_client(|before| Client { disabled, ..before })
                    .await;
                let reference = &mut self.reference;
                if reference.client.is_disabled && !disabled {
                    // What was issued until then is revoked: new tokens count from the next second
                    // on, as all of the histories' changes are made at one moment.
                    let heard_by = NOW.millis() + 800;
                    reference.tokens_from = Some((heard_by / 1000 + 1) * 1000 - NOW.millis());
                }
                reference.client.is_disabled = disabled;
            }
            Step::EndSessionsOfClient => {
                let change = Change::RevokeClientTokens {
                    client_id: self.site.client.clone(),
                    tokens_die_at: TOKENS_DIE_AT,
                };
                apply(&*store, change).await.unwrap();
                self.reference.client.has_moved_on = true;
            }
            Step::ReplaceClient => {
                let before = store.client(&self.site.client).await.unwrap().unwrap();
                apply(&*store, delete(&before)).await.unwrap();
                apply(&*store, create(before)).await.unwrap();
                self.reference.client.has_moved_on = true;
            }
            Step::DisableUser(disabled) => {
                let disabled = *disabled;
                self.site
                    .change_user(false, |before| User { disabled, ..before })
                    .await;
                self.reference.user.has_moved_on |= self.reference.user.is_disabled != disabled;
                self.reference.user.is_disabled = disabled;
            }
            Step::ChangePassword => {
                self.site.change_user(true, |before| before).await;
                self.reference.user.has_moved_on = true;
            }
            Step::Forget(family, count) => self.forget(*family, *count).await,
            Step::NewMacKey => self.reference.mac_version += 1,
        }
        if !matches!(step, Step::Present(_) | Step::EndByOperator(_)) {
            self.position.seq = self.changes().await.head;
        }
        self.compare().await;
    }

    async fn present(&mut self, presented: &Presented) {
        let line = &mut self.lines[presented.family];
        let before = line.expected.clone();
        let place = line.learnt.len().saturating_sub(presented.back + 1);
        let mut token = line.learnt[place];
        token.1 -= u32::from(presented.is_forged);
        let presentation = presentation(&line.opened, token, presented);
        let by = &presentation.cause;
        let expected = self
            .reference
            .present(&mut line.expected, token, presented, by);
        let terms = Terms {
            mac_version: self.reference.mac_version,
            ..TERMS
        };
        let batch = [presentation.clone()];
        let outcomes = self
            .site
            .store
            .rotate(&batch, &terms, at(self.reference.now));
        let outcome = outcomes.await.unwrap().remove(0);
        assert_eq!(verdict(&outcome), expected, "{token:?} in {:?}", before.row);
        line.hold_promises(token.0, &outcome);
        if expected_change(expected) {
            line.before.push(before);
        }
        if matches!(expected, Verdict::Granted(_)) && !presented.is_lost {
            let token = (line.expected.row.counter, line.expected.row.mac_version);
            if line.learnt.last() != Some(&token) {
                line.learnt.push(token);
            }
        }
        if matches!(expected, Verdict::Reused | Verdict::Ended) {
            self.expect_end_of(presented.family).await;
        }
    }

    /// The end of a family was published, and nothing else was.
    async fn expect_end_of(&mut self, family: usize) {
        let changes = self.changes().await;
        let targets: Vec<_> = changes.rows.iter().map(|row| &row.target).collect();
        assert_eq!(targets, [&self.lines[family].opened.id.to_string()]);
        self.position.seq = changes.head;
    }

    /// Sets a family back to how it was before its last changes.
    async fn forget(&mut self, family: usize, count: usize) {
        let line = &mut self.lines[family];
        let Some(place) = line.before.len().checked_sub(count) else {
            return;
        };
        line.expected = line.before[place].clone();
        line.before.truncate(place);
        let row = &line.expected.row;
        // What was exchanged after that is exchanged anew.
        line.successors.retain(|spent, _| *spent < row.counter);
        let text = |text: Option<&str>| text.map_or("null".to_owned(), |text| format!("'{text}'"));
        let number = |number: Option<i64>| number.map_or("null".to_owned(), |it| it.to_string());
        let notes: Vec<_> = line.expected.notes.iter().map(stored_note).collect();
        let assignments = format!(
            "counter = {}, mac_version = {}, mac_since = {}, rotated_at = {}, idle_expires_at = {}, revoked_at = {}, \
             revoke_reason = {}, last_address = {}, last_agent = {}, notes = '[{}]'",
            row.counter,
            row.mac_version,
            row.mac_since,
            row.rotated_at.millis(),
            row.idle_expires_at.millis(),
            number(row.revoked_at.map(Timestamp::millis)),
            text(row.revoke_reason.map(EndReason::as_str)),
            text(row.last.address.as_deref()),
            text(row.last.user_agent.as_deref()),
            notes.join(","),
        );
        let id = row.id;
        self.site.set(id, &assignments).await;
    }

    /// Both families are stored as expected, and nothing was published that was not expected.
    async fn compare(&mut self) {
        for line in &mut self.lines {
            let row = self.site.row(&line.opened).await;
            let notes: Vec<_> = row.notes.iter().cloned().collect();
            assert_eq!(notes, line.expected.notes);
            let expected = Family {
                notes: row.notes.clone(),
                ..line.expected.row.clone()
            };
            assert_eq!(row, expected);
            line.stored = row;
        }
        assert_eq!(self.changes().await.head, self.position.seq);
    }

    /// What was published that is not known yet.
    async fn changes(&self) -> Changes {
        let changes = self.site.store.changes_since(self.position, 9, NOW);
        changes.await.unwrap()
    }
}

fn expected_change(verdict: Verdict) -> bool {
    !matches!(
        verdict,
        Verdict::Refused(_) | Verdict::Granted(Turn::Replayed { is_first: false })
    )
}

/// A note as it is stored.
fn stored_note(note: &Note) -> String {
    let (at, kind, counter) = (note.at.millis(), note.kind, note.counter);
    let text = |text: &Option<String>| serde_json::to_string(text).unwrap();
    let (address, agent) = (text(&note.party.address), text(&note.party.user_agent));
    format!("[{at},\"{kind}\",{counter},{address},{agent}]")
}

fn presentation(family: &Family, token: Token, presented: &Presented) -> Presentation {
    let own = family.grant.client_id.clone();
    let refresh = |scope_text: Option<&str>, uris: &[&str]| Intent::Refresh {
        scope: scope_text.map(scope),
        resources: resources(uris),
        offered: family.grant.resources.clone(),
    };
    Presentation {
        family: family.id,
        counter: token.0,
        mac_version: token.1,
        client_id: match presented.by {
            By::OtherClient => ClientId::parse("other").unwrap(),
            By::Client | By::NoKey | By::OtherKey => own,
        },
        dpop_jkt: match presented.by {
            By::NoKey => None,
            By::OtherKey => Some("other key".to_owned()),
            By::Client | By::OtherClient => family.grant.dpop_jkt.clone(),
        },
        intent: match presented.wish {
            Wish::All => refresh(None, &[]),
            Wish::Less => refresh(Some("read"), &["urn:other"]),
            Wish::WiderScope => refresh(Some("read admin"), &["urn:other"]),
            Wish::ForeignResource => refresh(Some("read"), &["urn:foreign"]),
            Wish::Both => refresh(Some("admin"), &["urn:foreign"]),
            Wish::TheEnd => Intent::Revoke,
        },
        cause: cause(&format!("{:?}-{}", presented.by, presented.back)),
    }
}

/// Runs a property on generated values, as many as the engine is fast enough for.
fn hold<T: fmt::Debug>(
    engine: Engine,
    values: impl Strategy<Value = T>,
    property: impl AsyncFn(T),
) {
    let config = Config {
        cases: match engine {
            Engine::Sqlite => 200,
            Engine::Postgres => 60,
        },
        ..Config::with_source_file(file!())
    };
    let held = block_in_place(|| {
        TestRunner::new(config).run(&values, |value| {
            Handle::current().block_on(property(value));
            Ok(())
        })
    });
    if let Err(error) = held {
        panic!("{error}");
    }
}

pub(super) async fn every_history_goes_as_the_reference_has_it(database: &Database) {
    let store = database.open().await;
    let start = store.snapshot().await.unwrap().position;
    hold(database.engine(), histories(), async |history: History| {
        let mut play = Play::begin(database, &store, start, &history).await;
        for step in &history.steps {
            play.step(step).await;
        }
    });
}

/// Of how many families tokens are presented at once.
const FAMILIES: usize = 4;

/// Tokens of several families that are presented at once.
#[derive(Clone, Debug)]
struct Crowd {
    policy: RefreshPolicy,
    is_bound: bool,
    /// How often each family has been refreshed.
    refreshes: Vec<i64>,
    /// Each as far before the newest token as it says, or, the second being set, after it.
    presented: Vec<(Presented, bool)>,
    now: i64,
}

fn crowds() -> impl Strategy<Value = Crowd> {
    let policy = prop::sample::select(RefreshPolicy::ALL);
    let now = prop::sample::select(vec![-1, 0, 29_999, 30_000, 899_999, 900_000]);
    let presented = (presented(FAMILIES), prop::bool::weighted(0.1));
    (
        policy,
        any::<bool>(),
        prop::collection::vec(0i64..12, FAMILIES),
        prop::collection::vec(presented, 1..24),
        now,
    )
        .prop_map(|(policy, is_bound, refreshes, presented, now)| Crowd {
            policy,
            is_bound,
            refreshes,
            presented,
            now,
        })
}

/// Families of a crowd in one of two databases.
struct Place<'a> {
    site: Site<'a>,
    families: Vec<Family>,
    head: i64,
}

impl<'a> Place<'a> {
    async fn of(
        database: &'a Database,
        store: &Arc<dyn Store>,
        crowd: &Crowd,
        number: u64,
    ) -> Self {
        let name = format!("client-{number}");
        let site = Site::at(database, store.clone(), &name, number.into(), crowd.policy).await;
        let grant = Grant {
            dpop_jkt: crowd.is_bound.then(|| "key".to_owned()),
            ..site.grant().await
        };
        let mut families = Vec::new();
        let mut refreshes = Vec::new();
        for (place, count) in (1..).zip(&crowd.refreshes) {
            let family = u128::from(number) << 64 | place;
            let family = site.open_for(family, grant.clone()).await;
            let count = if crowd.policy == RefreshPolicy::None {
                0
            } else {
                *count
            };
            refreshes.extend((0..count).map(|counter| refresh(&family, counter)));
            families.push(family);
        }
        site.store.rotate(&refreshes, &TERMS, NOW).await.unwrap();
        for family in &mut families {
            *family = site.row(family).await;
        }
        let head = site.head().await;
        Self {
            site,
            families,
            head,
        }
    }

    fn batch(&self, crowd: &Crowd) -> Vec<Presentation> {
        let present = |(presented, is_ahead): &(Presented, bool)| {
            let family = &self.families[presented.family];
            let by = i64::try_from(presented.back).unwrap();
            let counter = family.counter + if *is_ahead { by } else { -by };
            presentation(family, (counter, family.mac_version), presented)
        };
        crowd.presented.iter().map(present).collect()
    }

    /// What was left behind: rows, entries, and events with their places.
    async fn traces(&self) -> impl PartialEq + fmt::Debug {
        let mut rows = Vec::new();
        for family in &self.families {
            rows.push(anywhere(&self.site.row(family).await));
        }
        let mut entries = self.site.store.revocations_since(self.head).await.unwrap();
        for entry in &mut entries {
            entry.seq -= self.head;
        }
        let query = EventQuery {
            latest_first: true,
            limit: u32::try_from(entries.len()).unwrap(),
            ..EventQuery::default()
        };
        let events = self.site.store.events(&query).await.unwrap();
        let events = events.into_iter().map(|event| {
            let Event {
                at,
                kind,
                target,
                cause,
                before,
                after,
                ..
            } = event;
            (at, kind, target, cause, before, after)
        });
        let events: Vec<_> = events.collect();
        (rows, entries, events, self.site.head().await - self.head)
    }
}

/// A family without what each database draws for itself.
fn anywhere(family: &Family) -> Family {
    let mut family = family.clone();
    (family.grant.client_epoch, family.grant.user_epoch) = (0, 0);
    family
}

pub(super) async fn a_batch_comes_to_the_same_as_its_members_one_by_one(database: &Database) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let twin = Database::create(database.engine()).await;
    let stores = (database.open().await, twin.open().await);
    hold(database.engine(), crowds(), async |crowd: Crowd| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let at_once = Place::of(database, &stores.0, &crowd, number).await;
        let in_turn = Place::of(&twin, &stores.1, &crowd, number).await;
        let now = at(crowd.now);
        let batch = at_once.batch(&crowd);
        let together = at_once
            .site
            .store
            .rotate(&batch, &TERMS, now)
            .await
            .unwrap();
        assert_eq!(together.len(), batch.len());
        for (presentation, outcome) in in_turn.batch(&crowd).into_iter().zip(&together) {
            let alone = in_turn.site.present(presentation, now).await;
            let pair = [outcome, &alone].map(|outcome| match outcome {
                Outcome::Judged {
                    verdict, family, ..
                } => (*verdict, anywhere(family)),
                other => panic!("{other:?}"),
            });
            assert_eq!(pair[0], pair[1]);
        }
        assert_eq!(at_once.traces().await, in_turn.traces().await);
    });
}
