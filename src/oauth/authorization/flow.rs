//! What a browser keeps of a user who is signing in, from one step to the next.
//!
//! Nothing of it is stored here. To add a step: what it has proved goes into [`Flow`], so that the next
//! one finds it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::request::AuthorizationRequest;
use crate::{
    clock::Timestamp,
    domain::{consent::Permission, factor::Proved},
    identity::{
        factor::passkey::{Authentication, Registration},
        session::Present,
    },
    oauth::{
        error::OAuthError,
        form::Form,
        seals::{Purpose, Seals, over},
    },
};

/// What a user signs in for.
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Errand {
    /// A client has asked.
    Authorize {
        /// Its request, as it came.
        query: String,
    },
    /// The user's own account.
    Account,
}

/// A user on the way through the steps, as the browser keeps it.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Flow {
    /// What for.
    pub(super) errand: Errand,
    /// When it began, in milliseconds since 1970.
    pub(super) begun_at: i64,
    /// What was shown on a page of consent; none on others.
    pub(super) shown: Option<Shown>,
    /// What was proved, before a second factor is.
    pub(super) proved: Option<Proved>,
    /// The session in which that was, if it was before this flow: a second factor raises it.
    pub(super) raising: Option<String>,
    /// The secret that an app is to share, in base64url: nothing is stored before it does.
    pub(super) enrolling: Option<String>,
    /// The passkey that is being made.
    pub(super) registering: Option<Registration>,
    /// The passkey that is asked for.
    pub(super) ceremony: Option<Authentication>,
}

impl Flow {
    /// The first step.
    pub(super) const fn begin(errand: Errand, now: Timestamp) -> Self {
        Self {
            errand,
            begun_at: now.millis(),
            shown: None,
            proved: None,
            raising: None,
            enrolling: None,
            registering: None,
            ceremony: None,
        }
    }

    /// The same without what was proved on the way: a session has that now.
    pub(super) fn after_steps(&self) -> Self {
        Self {
            proved: None,
            raising: None,
            enrolling: None,
            registering: None,
            ceremony: None,
            ..self.clone()
        }
    }

    /// Whether a client has asked.
    pub(super) const fn is_for_client(&self) -> bool {
        matches!(self.errand, Errand::Authorize { .. })
    }

    /// When the first step was taken.
    pub(super) const fn begun_at(&self) -> Timestamp {
        Timestamp::from_millis(self.begun_at)
    }

    /// For the browser of this binding, for half an hour from the first step on.
    pub(super) fn seal(&self, seals: &Seals, binding: &str) -> Result<String, OAuthError> {
        seals.seal(Purpose::Flow, self, self.begun_at(), binding)
    }

    /// What a client has asked for in a form of this browser that is too old to go on with.
    pub(super) fn query_of_old(form: &Form, seals: &Seals, binding: &str) -> Option<String> {
        let text = form.one("flow").ok()??;
        let flow: Self = seals.open_old(Purpose::Flow, text, binding).ok()?;
        match flow.errand {
            Errand::Authorize { query } => Some(query),
            Errand::Account => None,
        }
    }

    /// What a form of this browser goes on with.
    pub(super) fn of_form(form: &Form, seals: &Seals, binding: &str) -> Result<Self, OAuthError> {
        let text = form.one("flow")?.ok_or_else(over)?;
        seals.open(Purpose::Flow, text, binding)
    }
}

/// What a user is asked for consent to: that, and nothing else, is what the answer is about.
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Shown {
    /// The session of who is asked.
    session: String,
    /// The client's epoch.
    client_epoch: i64,
    /// Each line.
    permissions: Vec<(String, String)>,
}

impl Shown {
    pub(super) fn of(
        request: &AuthorizationRequest,
        present: &Present,
        permissions: &BTreeSet<Permission>,
    ) -> Self {
        let lines = permissions.iter();
        Self {
            session: present.session.id.to_string(),
            client_epoch: request.client.session_epoch,
            permissions: lines
                .map(|(uri, token)| (uri.as_str().to_owned(), token.clone()))
                .collect(),
        }
    }
}
