//! What clients do: authenticate and exchange credentials for tokens.
//!
//! Owns the rules of RFC 6749 and its relatives; knows nothing of HTTP but the names and values of
//! parameters. Imports `registry` and everything right of it; builds nothing itself, `app` does.
//!
//! To add a grant: a file in [`grants`] with its `exchange`, a variant of
//! [`GrantType`](crate::domain::client::GrantType), and its line in [`token::TokenEndpoint::exchange`].

pub mod access_token;
pub mod authorization;
pub mod challenge;
pub mod client_auth;
mod codes;
pub mod error;
pub mod form;
pub mod grants;
pub mod id_token;
pub mod introspection;
pub mod limits;
pub mod live_token;
pub mod logout;
pub mod metadata;
pub mod refresh_tokens;
pub mod revocation;
pub mod rotation_queue;
pub mod seals;
pub mod session;
pub mod token;
pub mod userinfo;

use self::error::OAuthError;
use crate::{
    clock::AgreedClock,
    store::{self, StoreError},
};

/// Waits for the database, but no longer than a client would.
pub async fn store_answer<T>(
    clock: &AgreedClock,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, OAuthError> {
    let answer = store::in_time(clock, answer).await;
    answer.map_err(OAuthError::of_store)
}
