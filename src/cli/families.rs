//! `countersign families …`

use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
    value_parser,
};
use serde_json::{Value, json};

use super::{Failure, Reason, client_id, family_id, output};
use crate::{
    admin::{
        AdminError,
        ending::Ending,
        family::{FamilyFilter, FamilyStory, FamilyView},
        page::{MOST, PageRequest},
        story::Told,
    },
    app::Context,
    clock::Timestamp,
    domain::{
        family::{FamilyState, Party},
        id::{ClientId, FamilyId},
        resource::ResourceUri,
    },
};

/// How many sessions of a user `why` tells of, the latest.
const MOST_TOLD: u32 = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List sessions, the latest first
    List(List),
    /// Show a session and its story
    Show(Show),
    /// Tell in plain words what has become of a session, or of the latest ones of a user
    Why(Why),
    /// End a session
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only sessions of this user
    #[arg(long, value_name = "ID|NAME")]
    subject: Option<String>,
    /// Only sessions at this client
    #[arg(long, value_name = "CLIENT_ID", value_parser = client_id)]
    client: Option<ClientId>,
    /// Only sessions in this state
    #[arg(
        long,
        value_name = "STATE",
        value_parser = PossibleValuesParser::new(FamilyState::ALL.iter().map(|state| state.as_str()))
            .try_map(|name| name.parse::<FamilyState>())
    )]
    state: Option<FamilyState>,
    /// How many sessions at most, 1 to 200
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u16).range(1..=200))]
    limit: u16,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Which one: the `sid` of its access tokens
    #[arg(value_name = "ID", value_parser = family_id)]
    id: FamilyId,
}

#[derive(Debug, Args)]
pub(super) struct Why {
    /// The id of a session, or the id or name of a user
    #[arg(value_name = "ID|USER")]
    which: String,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Which one: the `sid` of its access tokens
    #[arg(value_name = "ID", value_parser = family_id)]
    id: FamilyId,
    #[command(flatten)]
    reason: Reason,
}

impl Command {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(context, json).await,
            Self::Show(Show { id }) => {
                let told = context.families().show(id).await?;
                if json {
                    return Ok(output::json(&told.document())?);
                }
                output::fields(&fields(&told.view))?;
                output::line("")?;
                story(&told)
            }
            Self::Why(why) => why.run(context, json).await,
            Self::Revoke(Revoke { id, reason }) => {
                let told = context.families().end(id, &reason.cause()).await?;
                if json {
                    return Ok(output::json(&told.document())?);
                }
                output::line(&headline(&told.view, context.clock.now())).map_err(Failure::from)?;
                story(&told)
            }
        }
    }
}

impl List {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let families = context.families();
        let subject = match &self.subject {
            None => None,
            Some(text) => {
                let found = families.subject(text).await?;
                Some(found.ok_or_else(|| no_user(text))?.to_string())
            }
        };
        let filter = FamilyFilter {
            subject: subject.as_deref(),
            client_id: self.client.as_ref().map(ClientId::as_str),
            state: self.state.map(FamilyState::as_str),
        };
        let wanted = usize::from(self.limit);
        let mut views = Vec::new();
        let mut cursor = None;
        // A part may have fewer than are asked for, where few are in this state.
        while views.len() < wanted {
            let limit = (wanted - views.len()).min(MOST).to_string();
            let request = PageRequest::parse("families", Some(&limit), cursor.as_deref())?;
            let page = families.page(filter, &request).await?;
            views.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        if json {
            let items: Vec<Value> = views.iter().map(FamilyView::document).collect();
            return Ok(output::json(
                &json!({ "items": items, "next_cursor": null }),
            )?);
        }
        if views.is_empty() {
            return Ok(output::line("There are no such sessions.")?);
        }
        let rows: Vec<_> = views.iter().map(row).collect();
        Ok(output::table(
            [
                "STATE",
                "USER",
                "CLIENT",
                "SIGNED IN (UTC)",
                "REFRESHES",
                "ENDED (UTC)",
                "WHY",
                "ID",
            ],
            &rows,
        )?)
    }
}

fn row(view: &FamilyView) -> [String; 8] {
    let family = &view.family;
    let ending = view.ending.as_ref();
    [
        view.state.to_string(),
        user(view),
        family.grant.client_id.to_string(),
        output::utc(family.created_at),
        family.counter.to_string(),
        or_dash(ending.and_then(|ending| ending.at).map(output::utc)),
        or_dash(ending.map(|ending| ending.reason().to_owned())),
        family.id.to_string(),
    ]
}

impl Why {
    async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let families = context.families();
        if let Ok(id) = FamilyId::parse(&self.which) {
            match families.show(id).await {
                Ok(told) if json => return Ok(output::json(&told.document())?),
                Ok(told) => {
                    output::line(&headline(&told.view, context.clock.now()))?;
                    return story(&told);
                }
                // The id of a user has the same form.
                Err(AdminError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let found = families.subject(&self.which).await?;
        let subject = found.ok_or_else(|| no_user(&self.which))?;
        let stories = families.stories(subject, MOST_TOLD + 1).await?;
        let most = usize::try_from(MOST_TOLD).unwrap_or(usize::MAX);
        let has_more = stories.len() > most;
        let told = || stories.iter().take(most);
        if json {
            let items: Vec<Value> = told().map(FamilyStory::document).collect();
            return Ok(output::json(
                &json!({ "items": items, "next_cursor": null }),
            )?);
        }
        if stories.is_empty() {
            return Ok(output::line(
                "The user has no session, and none that has ended in the last 30 days.",
            )?);
        }
        for (number, one) in told().enumerate() {
            if number > 0 {
                output::line("")?;
            }
            output::line(&headline(&one.view, context.clock.now()))?;
            story(one)?;
        }
        if has_more {
            output::line("")?;
            output::line(&format!(
                "There are more; see: countersign families list --subject {subject}"
            ))?;
        }
        Ok(())
    }
}

/// What has become of a session, in a line.
fn headline(view: &FamilyView, now: Timestamp) -> String {
    let family = &view.family;
    let became = match (
        &view.state,
        view.ending.as_ref().and_then(|ending| ending.at),
    ) {
        (FamilyState::Active, _) => "is active".to_owned(),
        (FamilyState::Ended, Some(at)) => format!("ended {}", output::relative(at, now)),
        (FamilyState::Ended, None) => "has ended".to_owned(),
        (FamilyState::Suspended, _) => "rests".to_owned(),
    };
    let reason = view.ending.as_ref().map(Ending::reason);
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!(
        "Session {} of {} at client {} {became}{reason}.",
        family.id,
        user(view),
        family.grant.client_id,
    )
}

/// Draws the story of a session from the sign-in down.
fn story(told: &FamilyStory) -> Result<(), Failure> {
    let is_over = told.view.state == FamilyState::Ended;
    let last = told.story.len().saturating_sub(1);
    let mut rows: Vec<[String; 3]> = told
        .story
        .iter()
        .enumerate()
        .map(|(number, Told { at, text, .. })| {
            let mark = match number {
                0 => "┌",
                number if number == last && is_over => "└",
                _ => "├",
            };
            let at = at.map_or_else(|| "at some time".to_owned(), output::utc_seconds);
            [at, mark.to_owned(), text.clone()]
        })
        .collect();
    if told.view.state == FamilyState::Active {
        let family = &told.view.family;
        let goes_on = if family.idle_expires_at < family.expires_at {
            format!(
                "It ends at {} unless it is refreshed before, and at {} in any case.",
                output::utc_seconds(family.idle_expires_at),
                output::utc_seconds(family.expires_at)
            )
        } else {
            format!("It ends at {}.", output::utc_seconds(family.expires_at))
        };
        rows.push(["now".to_owned(), "▼".to_owned(), goes_on]);
    }
    Ok(output::rows(&rows)?)
}

fn fields(view: &FamilyView) -> [(&'static str, String); 15] {
    let family = &view.family;
    let ending = view.ending.as_ref();
    let resources: Vec<&str> = family
        .grant
        .resources
        .iter()
        .map(ResourceUri::as_str)
        .collect();
    let refreshed = (family.counter > 0).then(|| output::utc_seconds(family.rotated_at));
    [
        ("id", family.id.to_string()),
        ("user", user(view)),
        ("subject", family.grant.subject.to_string()),
        ("client", family.grant.client_id.to_string()),
        ("state", view.state.to_string()),
        ("scope", family.grant.scope.to_string()),
        ("resources", resources.join(" ")),
        ("signed in", output::utc_seconds(family.grant.auth_time)),
        ("refreshed", or_dash(refreshed)),
        ("refreshes", family.counter.to_string()),
        ("idle expiry", output::utc_seconds(family.idle_expires_at)),
        ("expiry", output::utc_seconds(family.expires_at)),
        (
            "ended",
            or_dash(ending.and_then(|ending| ending.at).map(output::utc_seconds)),
        ),
        (
            "reason",
            or_dash(ending.map(|ending| ending.reason().to_owned())),
        ),
        ("last from", or_dash(place(&family.last))),
    ]
}

fn place(party: &Party) -> Option<String> {
    let told = [&party.address, &party.user_agent];
    let told: Vec<&str> = told.into_iter().flatten().map(String::as_str).collect();
    (!told.is_empty()).then(|| told.join(" "))
}

/// The name of the user, or what is left of one that was removed.
fn user(view: &FamilyView) -> String {
    let subject = view.family.grant.subject;
    let named = view.standing.user.as_ref();
    named.map_or_else(
        || format!("removed user {subject}"),
        |user| user.username.clone(),
    )
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn no_user(text: &str) -> Failure {
    Failure::message(format!(
        "there is no session and no user {text}; see: countersign families list"
    ))
}
