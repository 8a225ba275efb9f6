//! Opening a store: finds the engine for a URL, brings the schema up to date.

use std::{io, path::PathBuf, sync::Arc};

use sqlx::migrate::MigrateError;

use super::{Store, StoreError};
use crate::{clock::Timestamp, entropy::Entropy};

/// What the store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To serve. On `SQLite` a database can be served by one process only.
    Serve,
    /// For one command, also beside a running server.
    Command,
}

/// Why a store could not be opened. None of it shows the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is malformed or of an engine that this binary does not have.
    #[error(
        "this is no database URL: {0}; write sqlite://<file> or postgres://<user>@<host>/<name>"
    )]
    Url(&'static str),
    /// Nothing answers there, or not with these credentials.
    #[error("the database cannot be reached; check that it runs there and takes these credentials")]
    Unreachable(#[source] sqlx::Error),
    /// The file or its folder cannot be used.
    #[error("{path} cannot be opened")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Another process serves this `SQLite` file.
    #[error(
        "{0} is being served by another process; one SQLite file takes one server (use Postgres for more)"
    )]
    InUse(PathBuf),
    /// A later version has been here.
    #[error(
        "the database has a newer schema (version {0}) than this binary knows; start a newer binary"
    )]
    NewerSchema(i64),
    /// A migration failed.
    #[error("the schema of the database cannot be brought up to date")]
    Migration(#[source] MigrateError),
    /// The database failed right after it was opened.
    #[error("the database failed while it was being opened")]
    Store(#[source] StoreError),
}

impl From<MigrateError> for OpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(version) => Self::NewerSchema(version),
            other => Self::Migration(other),
        }
    }
}

/// Opens the database of `url` and migrates it to this binary's schema.
pub async fn open(
    url: &str,
    access: Access,
    entropy: &Entropy,
    now: Timestamp,
) -> Result<Arc<dyn Store>, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => super::postgres::open(url, access, entropy, now).await,
        #[cfg(feature = "sqlite")]
        Some("sqlite") => super::sqlite::open(url, access, entropy, now).await,
        _ => Err(OpenError::Url(
            "it begins with neither sqlite:// nor postgres://",
        )),
    }
}
