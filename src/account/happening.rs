//! What has happened to an account, in plain words.

use super::{agent, page::When};
use crate::{
    clock::Timestamp,
    domain::{
        change::EventType,
        event::Event,
        id::{ClientId, UserId},
    },
    registry::Registry,
};

/// The reason that is recorded where a user signs out everywhere but in the browser that asks.
pub(super) const ELSEWHERE: &str = "everywhere but in this browser";

/// Something that has happened.
pub struct Happening {
    /// What.
    pub text: String,
    /// When.
    pub when: When,
    /// From which address, and with what.
    pub place: String,
    /// Whether its user should look at it twice.
    pub is_alarming: bool,
}

impl Happening {
    /// An event in words for the user it is about; none of what a user need not hear of.
    pub(super) fn of(
        event: &Event,
        subject: UserId,
        registry: &Registry,
        now: Timestamp,
    ) -> Option<Self> {
        let kind: EventType = event.kind.parse().ok()?;
        let is_own = event.cause.actor == format!("user:{subject}");
        let (text, is_alarming) = words(event, kind, is_own, registry)?;
        // Where an operator was, or an app's back end, is no place of the user's.
        let is_of_user = is_own || kind == EventType::FamilyReuseDetected;
        let address = event.cause.address.as_ref().filter(|_| is_of_user);
        let place = address.map_or_else(String::new, |address| {
            let agent = agent::in_words(event.cause.user_agent.as_deref());
            format!("{agent}, {address}")
        });
        Some(Self {
            text,
            when: When::of(event.at, now),
            place,
            is_alarming,
        })
    }
}

fn words(
    event: &Event,
    kind: EventType,
    is_own: bool,
    registry: &Registry,
) -> Option<(String, bool)> {
    let own = |yes: &str, no: &str| (if is_own { yes } else { no }).to_owned();
    let of_family = || {
        let client_id = event.after.as_ref()?.get("client_id")?.as_str()?;
        Some(name_of(client_id, registry))
    };
    let of_passkey = || event.after.as_ref()?.get("name")?.as_str();
    Some(match kind {
        EventType::UserCreated => ("Your account was created.".to_owned(), false),
        EventType::UserPasswordChanged => (
            own(
                "You changed your password. Every other session was ended.",
                "An administrator changed your password. Every session was ended.",
            ),
            !is_own,
        ),
        EventType::UserSessionsEnded => {
            let text = own(
                signed_out(event),
                "An administrator ended all your sessions.",
            );
            (text, false)
        }
        EventType::UserDisabled => ("An administrator disabled your account.".to_owned(), true),
        EventType::UserEnabled => (
            "An administrator enabled your account again.".to_owned(),
            false,
        ),
        EventType::UserUpdated => (
            "The details of your account were changed.".to_owned(),
            false,
        ),
        EventType::SessionEnded => (
            own("You signed out of a browser.", "A browser was signed out."),
            false,
        ),
        EventType::FamilyRevoked => {
            let app = of_family()?;
            let text = if is_own {
                format!("You signed out of {app}.")
            } else {
                format!("Your sign-in at {app} was ended by the app or an administrator.")
            };
            (text, false)
        }
        EventType::FamilyReuseDetected => (
            format!(
                "Your sign-in at {} was ended: somebody used a part of it a second time. It may have \
                 been stolen.",
                of_family()?
            ),
            true,
        ),
        EventType::ConsentGiven => {
            let app = name_of(&event.target, registry);
            (format!("You allowed {app} to use your account."), false)
        }
        EventType::ConsentWithdrawn => {
            let app = name_of(&event.target, registry);
            let who = own("You", "An administrator");
            (format!("{who} took back what {app} was allowed."), false)
        }
        EventType::TotpEnrolled => (
            own(
                "You set up an app for two-step verification.",
                "An app was set up for two-step verification.",
            ),
            !is_own,
        ),
        EventType::TotpRemoved => (
            "The app for two-step verification was removed.".to_owned(),
            true,
        ),
        EventType::RecoveryCodesMade => ("New recovery codes were made.".to_owned(), !is_own),
        EventType::RecoveryCodeUsed => ("A recovery code was used to sign in.".to_owned(), true),
        EventType::PasskeyAdded => (format!("The passkey {} was added.", of_passkey()?), !is_own),
        EventType::PasskeyRemoved => (format!("The passkey {} was removed.", of_passkey()?), true),
        EventType::UserFactorsReset => (
            "An administrator removed your two-step verification, and ended all your sessions."
                .to_owned(),
            true,
        ),
        EventType::UserDeleted
        | EventType::ClientCreated
        | EventType::ClientDeleted
        | EventType::ClientSecretCreated
        | EventType::ClientSecretDeleted
        | EventType::ClientTokensRevoked
        | EventType::ClientUpdated
        | EventType::DatabaseRestored
        | EventType::KeyCreated
        | EventType::KeyRevoked
        | EventType::KeyRotated
        | EventType::KeysRewrapped
        | EventType::LogoutNoticeDropped
        | EventType::LogoutNoticeRefused
        | EventType::MasterKeyPromoted
        | EventType::ResourceCreated
        | EventType::ResourceDeleted
        | EventType::TokenRevoked => return None,
    })
}

/// From where a user has signed out that has ended its sessions.
fn signed_out(event: &Event) -> &'static str {
    match event.cause.reason.as_deref() {
        Some(ELSEWHERE) => "You signed out everywhere else.",
        _ => "You signed out everywhere.",
    }
}

/// The name of a client, also of one that is no more.
pub(super) fn name_of(client_id: &str, registry: &Registry) -> String {
    let client = ClientId::parse(client_id).ok();
    let client = client.and_then(|id| registry.client(&id).cloned());
    let name = client.map(|client| client.client_name.clone());
    let name = name.filter(|name| !name.trim().is_empty());
    name.unwrap_or_else(|| client_id.to_owned())
}
