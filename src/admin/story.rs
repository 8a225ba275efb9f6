//! The story of a family, in order and in plain words.
//!
//! It is told from the family's row, which has a bounded number of notes, and from the audit trail.
//!
//! # Security
//! Addresses and what browsers say they are come from whoever sent a request: they are told, and
//! nothing is concluded from them.

use serde_json::{Value, json};

use super::{
    AdminError,
    ending::{Ending, Trail, Why},
    family::{FamilyStory, FamilyView},
};
use crate::{
    clock::Timestamp,
    domain::{
        change::Cause,
        event::Event,
        family::{EndReason, Family, Note, NoteKind, Party, RefreshPolicy},
        words::span,
    },
};

/// One thing that happened to a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When; unknown where nobody has written it down.
    pub at: Option<Timestamp>,
    /// What, in a word for programs.
    pub what: &'static str,
    /// What, in words for people.
    pub text: String,
    /// Who did it, as far as that is known.
    pub party: Party,
}

impl Told {
    /// As the admin interfaces show it.
    pub fn document(&self) -> Value {
        json!({
            "at": self.at.map(Timestamp::seconds),
            "what": self.what,
            "text": self.text,
            "address": self.party.address,
            "user_agent": self.party.user_agent,
        })
    }
}

/// Tells the story of a family.
pub(super) async fn tell(
    view: FamilyView,
    trail: &mut Trail<'_>,
) -> Result<FamilyStory, AdminError> {
    let family = &view.family;
    // Notes of the present counter were taken after the last refresh.
    let (after, before): (Vec<&Note>, Vec<&Note>) = family
        .notes
        .iter()
        .partition(|note| note.counter == family.counter);
    let noted = |note: &&Note| noted(family, note);
    let mut story = vec![opened(family)];
    story.extend(before.iter().map(noted));
    story.extend(refreshed(&view));
    story.extend(after.iter().map(noted));
    // What nobody has dated comes last; what happened at once stays in this order.
    story.sort_by_key(|told| told.at.unwrap_or(Timestamp::from_millis(i64::MAX)));
    if let Some(ending) = &view.ending {
        let own = match ending.why {
            Why::Itself(_) => trail.own_ending(family).await?,
            _ => None,
        };
        story.push(ended(family, ending, own.as_ref()));
    }
    Ok(FamilyStory { view, story })
}

fn opened(family: &Family) -> Told {
    Told {
        at: Some(family.created_at),
        what: "opened",
        text: format!(
            "The user signed in at client {}{}.",
            family.grant.client_id,
            from(&family.first)
        ),
        party: family.first.clone(),
    }
}

/// How often the family was refreshed, and when last.
fn refreshed(view: &FamilyView) -> Option<Told> {
    let family = &view.family;
    let policy = view.standing.client.as_ref().map(|client| client.policy);
    let from = from(&family.last);
    let (at, text) = match family.counter {
        0 if policy == Some(RefreshPolicy::None) => (
            None,
            format!(
                "Nobody counts how often the session is refreshed, as its refresh token stays the same.{}",
                if from.is_empty() {
                    String::new()
                } else {
                    format!(" The last refresh, or the sign-in, came{from}.")
                }
            ),
        ),
        0 => return None,
        1 => (Some(family.rotated_at), format!("Refreshed once{from}.")),
        count => (
            Some(family.rotated_at),
            format!("Refreshed {count} times, the last time{from}."),
        ),
    };
    Some(Told {
        at,
        what: "refreshed",
        text,
        party: family.last.clone(),
    })
}

fn noted(family: &Family, note: &Note) -> Told {
    let (what, text) = match note.kind {
        NoteKind::Replayed => (
            "replayed",
            format!(
                "The refresh token before the last one was presented again{}: the answer was the same \
                 as before, as after one that was lost.",
                from(&note.party)
            ),
        ),
        NoteKind::Recovered => (
            "recovered",
            format!(
                "A refresh token was presented{} that was ahead of the database, which had lost commits: the \
                 session went on from it.",
                from(&note.party)
            ),
        ),
        NoteKind::Reused => ("reused", reused(family, note)),
        NoteKind::CodeReused => (
            "code_reused",
            format!(
                "The authorization code that the session began with was used again{}. {}",
                from(&note.party),
                compared(&note.party, &family.first, "It was used first", "")
            ),
        ),
    };
    Told {
        at: Some(note.at),
        what,
        text,
        party: note.party.clone(),
    }
}

fn reused(family: &Family, note: &Note) -> String {
    let before = format!(" {} before", span(note.at.since(family.rotated_at)));
    let presented = format!("A spent refresh token was presented{}.", from(&note.party));
    let refreshed = compared(
        &note.party,
        &family.last,
        "The session was refreshed last",
        &before,
    );
    format!("{presented} {refreshed}")
}

/// Tells of the other party, and whether the two look the same.
fn compared(one: &Party, other: &Party, did: &str, when: &str) -> String {
    if one == other && one.address.is_some() {
        format!(
            "{did}{when} from the same address with the same agent: a client that stores its tokens late, \
             or whose processes share them, looks like this, too."
        )
    } else {
        format!("{did}{when}{}: one of the two may be a thief.", from(other))
    }
}

fn ended(family: &Family, ending: &Ending, own: Option<&Event>) -> Told {
    let what = match ending.why {
        Why::ClientDisabled => "suspended",
        _ => "ended",
    };
    let event = ending.event.as_ref().or(own);
    let cause = event.map(|event| &event.cause);
    Told {
        at: ending.at,
        what,
        text: end_text(family, ending, cause),
        party: cause.map(Party::of).unwrap_or_default(),
    }
}

fn end_text(family: &Family, ending: &Ending, cause: Option<&Cause>) -> String {
    let act = match ending.why {
        Why::Itself(Some(EndReason::Reuse)) => {
            return "The session was ended because of that, with all its tokens.".to_owned();
        }
        Why::Itself(Some(EndReason::CodeReuse)) => {
            return "What the code was exchanged for was ended because of that: the session with all its \
                    tokens."
                .to_owned();
        }
        Why::Itself(None) => return "The session was ended.".to_owned(),
        Why::Itself(Some(EndReason::SignedOut)) => return of_user("signed out", cause),
        Why::Itself(Some(EndReason::ConsentWithdrawn))
            if cause.is_none_or(|cause| cause.actor.starts_with("user:")) =>
        {
            return of_user("took back what it had allowed the client", cause);
        }
        Why::Itself(Some(EndReason::ConsentWithdrawn)) => {
            "What the user had allowed the client was taken back"
        }
        Why::Itself(Some(EndReason::RevokedByClient)) => {
            return format!(
                "The client ended the session{}, as when its user signs out.",
                cause.map(Party::of).as_ref().map(from).unwrap_or_default()
            );
        }
        Why::Itself(Some(EndReason::RevokedByOperator)) => "The session was ended",
        Why::Expired => {
            let life = span(family.expires_at.since(family.created_at));
            return format!(
                "The session has reached its end: it lasts {life}, however often it is refreshed."
            );
        }
        Why::IdleExpired => {
            return "The session has ended, as it was not refreshed for too long.".to_owned();
        }
        Why::KeyRevoked => {
            return "The key that the session's refresh tokens were made with was taken out of use: nobody \
                    takes them any more."
                .to_owned();
        }
        Why::ClientDeleted => "The client was removed",
        Why::ClientDisabled => "The client was disabled",
        Why::ClientSessionsEnded => "Every session at the client was ended",
        Why::Restored => "The database was restored from a backup",
        Why::PasswordChanged => "The password of the user was changed",
        Why::UserDeleted => "The user was removed",
        Why::UserDisabled => "The user was disabled",
        Why::UserSessionsEnded => "Every session of the user was ended",
    };
    let consequence = match ending.why {
        Why::ClientDisabled => " The session rests until the client is enabled again.",
        Why::PasswordChanged => " That ends every session of the user.",
        Why::Restored => {
            " That ends every session, as nobody knows which ones had been ended after the backup was made."
        }
        _ => "",
    };
    match cause {
        Some(cause) => {
            let by = by(cause, family);
            let from = from(&Party::of(cause));
            let reason = cause.reason.as_ref();
            let reason = reason.map_or_else(String::new, |reason| format!(" Reason: “{reason}”."));
            format!("{act} by {by}{from}.{reason}{consequence}")
        }
        None => format!(
            "{act}; the audit trail does not say any more when, by whom and why.{consequence}"
        ),
    }
}

/// What a user has done itself.
fn of_user(did: &str, cause: Option<&Cause>) -> String {
    let from = cause.map(Party::of).as_ref().map(from);
    format!("The user {did}{}.", from.unwrap_or_default())
}

/// Who caused something.
fn by(cause: &Cause, family: &Family) -> String {
    match cause.actor.strip_prefix("cli:") {
        Some(user) => format!("{user} on the command line"),
        None if cause.actor == "system" => "the service itself".to_owned(),
        None if cause.actor == family.grant.client_id.as_str() => "the client itself".to_owned(),
        None => format!("operator {}", cause.actor),
    }
}

/// Where a request came from. What its sender chose cannot be taken for words of ours.
fn from(party: &Party) -> String {
    let agent = party.user_agent.as_ref();
    let agent = agent.map(|agent| agent.replace(['“', '”'], "\""));
    match (&party.address, agent) {
        (Some(address), Some(agent)) => format!(" from {address} with “{agent}”"),
        (Some(address), None) => format!(" from {address}"),
        (None, Some(agent)) => format!(" with “{agent}”"),
        (None, None) => String::new(),
    }
}
