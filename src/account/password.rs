//! Changing the password, by whoever knows the present one.

use super::{
    Accounts, Outcome,
    page::{Part, Problem},
};
use crate::{
    admin::AdminError,
    domain::change::Cause,
    identity::{
        password::Password,
        session::Present,
        sign_in::{Place, Refused},
    },
    oauth::{
        authorization::endpoint::Browser,
        error::{ErrorCode, OAuthError},
        form::Form,
    },
};

impl Accounts {
    /// Changes the password of whoever knows the present one. Every session ends, and this browser goes
    /// on under another cookie.
    ///
    /// # Security
    /// Whoever has found the browser open does not know the password, and guesses it no more often than
    /// whoever signs in: the limits are the same.
    pub(super) async fn change_password(
        &self,
        form: &Form,
        present: &Present,
        browser: Browser<'_>,
    ) -> Result<Outcome, Problem> {
        let field = |name| form.one(name).map_err(Problem::of);
        let (current, new) = (field("current")?, field("new")?.unwrap_or_default());
        if new != field("again")?.unwrap_or_default() {
            return Err(wrong(
                Part::NewPassword,
                "The two new passwords are not the same.",
            ));
        }
        let place = Place::of_browser(browser.origin);
        let name = &present.user.username;
        let current = current.unwrap_or_default();
        let verified = self.sign_in.verify(name, current, place.as_ref()).await;
        let user = verified.map_err(|refused| match refused {
            Refused::Credentials => wrong(Part::CurrentPassword, "The current password is wrong."),
            Refused::TooOften(wait) => Problem::at(
                Part::Password,
                OAuthError::too_often(
                    wait,
                    "That has failed too often from here. Try again in a moment.",
                ),
            ),
            Refused::Busy(_) => Problem::at(Part::Password, busy()),
            Refused::Store(error) => Problem::of(OAuthError::of_store(error)),
        })?;
        // The name may be another one's by now.
        if user.id != present.session.subject {
            return Err(wrong(
                Part::CurrentPassword,
                "The current password is wrong.",
            ));
        }
        let new = Password::read(new).map_err(|error| weak(&error.to_string()))?;
        let cause = Cause::of_user(user.id, browser.origin);
        let changed = self.users.replace_password(&user, new, &cause).await;
        let changed = changed.map_err(of_admin)?;
        let reopened = self.reopen(present, changed.revision, &cause).await;
        reopened.map_err(Problem::of)
    }
}

const fn busy() -> OAuthError {
    OAuthError::new(
        ErrorCode::TemporarilyUnavailable,
        "busy",
        "Too many people are signing in. Try again in a moment.",
    )
}

fn wrong(part: Part, text: &'static str) -> Problem {
    let error = OAuthError::new(ErrorCode::AccessDenied, "credentials", text);
    Problem::at(part, error)
}

fn weak(detail: &str) -> Problem {
    Problem {
        text: format!("The new password {detail}."),
        ..wrong(Part::NewPassword, "The new password is not taken.")
    }
}

fn of_admin(error: AdminError) -> Problem {
    match error {
        AdminError::Invalid(errors) => {
            let details: Vec<&str> = errors.iter().map(|error| &*error.detail).collect();
            weak(&details.join("; "))
        }
        AdminError::Busy(_) => Problem::at(Part::Password, busy()),
        AdminError::Conflict(_) => wrong(
            Part::Password,
            "Your password, or your account, was changed at this moment. Try again.",
        ),
        AdminError::Store(error) => Problem::of(OAuthError::of_store(error)),
        other => Problem::of(OAuthError::internal(other)),
    }
}
