//! What operators do: use cases shared by the admin interface and the command line.
//!
//! Each takes a [`Cause`](crate::domain::change::Cause), checks its input as a whole before
//! anything is written, and applies one change. Imports `identity`, `keys`, `store` and `domain`.
//!
//! To add a call: a method on the struct of its family, an error with a pointer for each field that
//! can be wrong, its command in `cli`, and its route.

pub mod client;
mod client_keys;
pub mod document;
pub mod ending;
pub mod event;
pub mod family;
pub mod key;
pub mod operator;
pub mod page;
pub mod resource;
pub mod revocation;
pub mod story;
pub mod user;

use crate::{
    clock::Timestamp,
    entropy::EntropyError,
    identity::password::Busy,
    keys::{master::MasterKeyError, sealing::SealingError},
    store::StoreError,
};

/// What is wrong with one field of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Which one, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// What is wrong, and where.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// Why an operator's request was not carried out. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Fields are wrong.
    #[error("{}", field_list(.0))]
    Invalid(Vec<FieldError>),
    /// It is above the authority of whoever asks.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing.
    #[error("there is no {0} of this id")]
    NotFound(&'static str),
    /// It exists already, was changed meanwhile, or its state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// Verifiers, or nodes, may not know the next key yet.
    #[error("the next key may sign from {} on (Unix time): verifiers or nodes may not know it earlier", .earliest_activation_at.seconds())]
    TooEarly {
        /// From when on it may.
        earliest_activation_at: Timestamp,
    },
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
    /// Too many passwords are being hashed: another attempt may succeed.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// A key could not be sealed or opened.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// Master keys cannot be used.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl AdminError {
    /// Whether the database could not be reached: another attempt may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unavailable(_)))
    }
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict(
                "it exists already, or was changed meanwhile; look at it again".to_owned(),
            ),
            other => Self::Store(other),
        }
    }
}

fn field_list(errors: &[FieldError]) -> String {
    let errors: Vec<String> = errors
        .iter()
        .map(|error| {
            format!(
                "{}: {}",
                error.pointer.trim_start_matches('/'),
                error.detail
            )
        })
        .collect();
    errors.join("; ")
}
