//! What the account page shows.

use std::collections::HashMap;

use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

pub use super::happening::Happening;
use super::{Accounts, agent, form::Act, happening::name_of, security::Security};
use crate::{
    admin::{
        AdminError,
        family::{FamilyFilter, FamilyView},
        page::PageRequest,
    },
    clock::Timestamp,
    domain::{
        browser_session::BrowserSession, consent::Consent, event::EventQuery, family::Party,
        id::SessionId, words::span,
    },
    identity::session::Present,
    oauth::{authorization::endpoint::Browser, error::OAuthError, store_answer},
    registry::{Registry, Told},
};

/// How many of each the page shows, and how many where it shows them in full.
const SOME: u32 = 10;
const MANY: u32 = 200;

/// A moment, as people tell it.
pub struct When {
    /// From now.
    pub ago: String,
    /// In full.
    pub utc: String,
    /// For programs (RFC 3339).
    pub stamp: String,
}

impl When {
    pub(super) fn of(at: Timestamp, now: Timestamp) -> Self {
        let format = format_description!(
            "[day padding:none] [month repr:short] [year], [hour]:[minute] UTC"
        );
        let time = OffsetDateTime::from_unix_timestamp(at.seconds()).ok();
        let utc = time.and_then(|time| time.format(format).ok());
        let stamp = time.and_then(|time| time.format(&Rfc3339).ok());
        let past = now.since(at);
        Self {
            ago: if past.as_secs() < 60 {
                "just now".to_owned()
            } else {
                format!("{} ago", span(past))
            },
            utc: utc.unwrap_or_default(),
            stamp: stamp.unwrap_or_default(),
        }
    }
}

/// A browser in which the user is signed in.
pub struct SignedInBrowser {
    /// Whether it is the one that asks.
    pub is_this: bool,
    /// What it is.
    pub device: String,
    /// Its network address when it was last seen.
    pub address: String,
    /// When the user signed in.
    pub since: When,
    /// When it was last seen.
    pub seen: When,
    /// The apps that the user has signed in to there.
    pub apps: Vec<SignedInApp>,
    /// What signs it out.
    pub form: String,
}

/// A sign-in at a client.
pub struct SignedInApp {
    /// The client's name.
    pub name: String,
    /// With what it was last refreshed.
    pub device: String,
    /// From where.
    pub address: String,
    /// When the user signed in.
    pub since: When,
    /// When it was last refreshed.
    pub seen: When,
    /// What ends it.
    pub form: String,
}

/// What a client is allowed.
pub struct Allowed {
    /// The client's name.
    pub name: String,
    /// What.
    pub grants: Vec<Told>,
    /// When it was last asked for.
    pub when: When,
    /// What takes it back.
    pub form: String,
}

/// The part of the page in which something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In none of its forms.
    Page,
    /// In the form of the password, with no field of it.
    Password,
    /// With the present password.
    CurrentPassword,
    /// With the new one.
    NewPassword,
}

/// What was wrong with a form.
#[derive(Debug)]
pub struct Problem {
    /// For the user.
    pub text: String,
    /// Where.
    pub part: Part,
    /// For the log and the metrics.
    pub error: OAuthError,
}

impl Problem {
    pub(super) fn of(error: OAuthError) -> Self {
        Self {
            text: error.description().to_owned(),
            part: Part::Page,
            error,
        }
    }

    pub(super) fn at(part: Part, error: OAuthError) -> Self {
        Self {
            part,
            ..Self::of(error)
        }
    }
}

/// What the page shows.
pub struct AccountPage {
    /// Who is signed in.
    pub username: String,
    /// Whether there is a password to change.
    pub has_password: bool,
    /// When the password was last changed.
    pub password_changed: Option<When>,
    /// Where the user is signed in: this browser first.
    pub browsers: Vec<SignedInBrowser>,
    /// The apps that go on without a browser.
    pub apps: Vec<SignedInApp>,
    /// What apps are allowed.
    pub allowed: Vec<Allowed>,
    /// What has happened lately, the latest first.
    pub happenings: Vec<Happening>,
    /// Whether there is more of something.
    pub has_more: bool,
    /// What was wrong with a form.
    pub problem: Option<Problem>,
    /// What ends every session but this one.
    pub end_others: String,
    /// What ends every session.
    pub end_all: String,
    /// What changes the password.
    pub change_password: String,
    /// Second factors.
    pub security: Security,
}

impl Accounts {
    /// What the page shows to whoever is signed in.
    pub(super) async fn drawn(
        &self,
        present: &Present,
        browser: Browser<'_>,
        in_full: bool,
        problem: Option<Problem>,
    ) -> Result<AccountPage, OAuthError> {
        let limit = if in_full { MANY } else { SOME };
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let now = self.clock.now();
        let subject = present.session.subject;
        let user = store_answer(&self.clock, self.store.user(subject)).await?;
        let idle_since = now.minus(self.sessions.idle);
        let reading = self.store.sessions(subject, idle_since, now, limit + 1);
        let mut sessions = store_answer(&self.clock, reading).await?;
        let (families, has_more_families) = self.living_families(present, limit).await?;
        let mut consents = store_answer(&self.clock, self.store.consents(subject)).await?;
        let query = EventQuery {
            concerning: Some(subject),
            limit: limit + 1,
            ..EventQuery::default()
        };
        let mut events = store_answer(&self.clock, self.store.events(&query)).await?;
        let registry = self.snapshots.registry();
        consents.retain(|consent| {
            let client = registry.client(&consent.client_id);
            client.is_some_and(|client| client.session_epoch == consent.client_epoch)
        });
        consents.sort_by_key(|consent| std::cmp::Reverse(consent.given_at));
        let has_more = !in_full
            && (has_more_families
                || [sessions.len(), consents.len(), events.len()]
                    .iter()
                    .any(|count| *count > most));
        // This one is there, however many others came after it.
        sessions.retain(|session| session.id != present.session.id);
        sessions.truncate(most.saturating_sub(1));
        sessions.insert(0, present.session.clone());
        consents.truncate(most);
        events.truncate(most);

        let draw = Drawing {
            accounts: self,
            present,
            browser,
            registry: &registry,
            now,
        };
        let (browsers, apps) = draw.places(sessions, &families)?;
        let allowed = consents.iter().map(|consent| draw.allowed(consent));
        let allowed = allowed.collect::<Result<_, _>>()?;
        let happenings = events
            .iter()
            .filter_map(|event| Happening::of(event, subject, &registry, now));
        let changed_at = user.as_ref().and_then(|user| user.password_changed_at);
        let security = self.security(user.as_ref(), present, browser, now).await?;
        Ok(AccountPage {
            security,
            username: present.user.username.clone(),
            has_password: user.is_some_and(|user| user.password_hash.is_some()),
            password_changed: changed_at.map(|at| When::of(at, now)),
            browsers,
            apps,
            allowed,
            happenings: happenings.collect(),
            has_more,
            problem,
            end_others: draw.form(Act::EndOthers)?,
            end_all: draw.form(Act::EndAll)?,
            change_password: draw.form(Act::ChangePassword)?,
        })
    }

    /// The latest sign-ins at clients that go on, and whether there are more.
    async fn living_families(
        &self,
        present: &Present,
        limit: u32,
    ) -> Result<(Vec<FamilyView>, bool), OAuthError> {
        let subject = present.session.subject.to_string();
        let filter = FamilyFilter {
            subject: Some(&subject),
            state: Some("active"),
            ..FamilyFilter::default()
        };
        let limit = limit.to_string();
        let request = PageRequest::parse("families", Some(&limit), None).map_err(of_admin)?;
        let page = self.families.page(filter, &request).await;
        let page = page.map_err(of_admin)?;
        Ok((page.items, page.next_cursor.is_some()))
    }
}

fn of_admin(error: AdminError) -> OAuthError {
    match error {
        AdminError::Store(error) => OAuthError::of_store(error),
        other => OAuthError::internal(other),
    }
}

/// What it takes to draw the parts of a page.
struct Drawing<'a> {
    accounts: &'a Accounts,
    present: &'a Present,
    browser: Browser<'a>,
    registry: &'a Registry,
    now: Timestamp,
}

impl Drawing<'_> {
    fn form(&self, act: Act) -> Result<String, OAuthError> {
        self.accounts.form(act, self.present, self.browser)
    }

    fn when(&self, at: Timestamp) -> When {
        When::of(at, self.now)
    }

    /// Browsers, each with the apps that end with it, and all other apps.
    fn places(
        &self,
        sessions: Vec<BrowserSession>,
        families: &[FamilyView],
    ) -> Result<(Vec<SignedInBrowser>, Vec<SignedInApp>), OAuthError> {
        let mut of_session: HashMap<SessionId, Vec<SignedInApp>> = HashMap::new();
        let mut others = Vec::new();
        for view in families {
            let grant = &view.family.grant;
            let shown = |id: &SessionId| sessions.iter().any(|session| session.id == *id);
            let session = grant.session_id.filter(shown);
            let app = self.app(view)?;
            match session.filter(|_| !grant.outlasts_its_session()) {
                Some(session) => of_session.entry(session).or_default().push(app),
                None => others.push(app),
            }
        }
        let mut browsers = Vec::with_capacity(sessions.len());
        for session in sessions {
            let (device, address) = place(&session.last);
            browsers.push(SignedInBrowser {
                is_this: session.id == self.present.session.id,
                device,
                address,
                since: self.when(session.auth_time),
                seen: self.when(session.seen_at),
                apps: of_session.remove(&session.id).unwrap_or_default(),
                form: self.form(Act::EndSession(session.id.to_string()))?,
            });
        }
        Ok((browsers, others))
    }

    fn app(&self, view: &FamilyView) -> Result<SignedInApp, OAuthError> {
        let family = &view.family;
        let (device, address) = place(&family.last);
        Ok(SignedInApp {
            name: name_of(family.grant.client_id.as_str(), self.registry),
            device,
            address,
            since: self.when(family.created_at),
            seen: self.when(family.rotated_at),
            form: self.form(Act::EndFamily(family.id.to_string()))?,
        })
    }

    fn allowed(&self, consent: &Consent) -> Result<Allowed, OAuthError> {
        let grants = consent.permissions.iter().map(|it| self.registry.told(it));
        let client_id = consent.client_id.as_str();
        Ok(Allowed {
            name: name_of(client_id, self.registry),
            grants: grants.collect(),
            when: self.when(consent.given_at),
            form: self.form(Act::Withdraw(client_id.to_owned()))?,
        })
    }
}

/// With what somebody came, and from where.
fn place(party: &Party) -> (String, String) {
    let device = agent::in_words(party.user_agent.as_deref());
    (device, party.address.clone().unwrap_or_default())
}
