//! What users do for themselves, at their own account.
//!
//! Each use case knows by the session of the browser whose account it is. Imports `admin`, `oauth` and
//! everything right of them; knows nothing of HTTP but the fields of forms.

use crate::{
    identity::session::Sessions,
    oauth::{authorization::endpoint::Browser, error::OAuthError},
};

/// The accounts of users who are signed in.
pub struct Accounts {
    /// Who has signed in where.
    pub sessions: Sessions,
}

/// What the page shows.
pub struct AccountPage {
    /// Who is signed in.
    pub username: String,
}

impl Accounts {
    /// What the page shows; none where nobody is signed in.
    pub async fn page(&self, browser: Browser<'_>) -> Result<Option<AccountPage>, OAuthError> {
        let present = browser.present(&self.sessions).await?;
        Ok(present.map(|present| AccountPage {
            username: present.user.username,
        }))
    }
}
