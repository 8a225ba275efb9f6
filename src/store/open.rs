//! Opening a store: finds the engine for a URL, and decides who brings the schema up to date.

use std::{io, path::PathBuf, sync::Arc};

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator},
};

use super::{Store, StoreError};
use crate::{clock::Timestamp, entropy::Entropy};

/// What the store is opened for, and with it whether its schema may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For one command, also beside a running server. Makes the schema of a database that has none,
    /// and refuses an older one: a look around must not begin an upgrade.
    Command,
    /// To tell what is there. Refuses a database without a schema as well.
    Look,
    /// To bring the schema up to date, also beside a running server.
    Migrate,
    /// To serve, having brought the schema up to date. On `SQLite` a database can be served by one
    /// process only.
    Serve,
}

/// The schema that a binary works with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schema {
    /// One more migration, in SQL that both engines read, after those that are part of this binary:
    /// by it an upgrade is rehearsed with the next version's schema. Otherwise none.
    pub further: Option<&'static str>,
}

impl Schema {
    /// The number of the last migration; it is the same on both engines.
    pub fn version(self) -> i64 {
        #[cfg(feature = "sqlite")]
        let embedded = &super::sqlite::MIGRATIONS;
        #[cfg(not(feature = "sqlite"))]
        let embedded = &super::postgres::MIGRATIONS;
        version(&self.migrator(embedded))
    }

    /// The migrations of one engine.
    pub(super) fn migrator(self, embedded: &Migrator) -> Migrator {
        let further = self.further.map(|sql| {
            let (number, sql) = (version(embedded) + 1, sql.into_sql_str());
            Migration::new(number, "further".into(), MigrationType::Simple, sql, false)
        });
        Migrator::with_migrations(embedded.iter().cloned().chain(further).collect())
    }
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
    /// Nobody has made a schema there.
    #[error("the database has no schema yet; run countersign migrate, or start the service")]
    NoSchema,
    /// An earlier version has been here, and this is no command that changes the schema.
    #[error(
        "the database has an older schema (version {found}) than this binary needs (version {needed}); run countersign migrate"
    )]
    OlderSchema {
        /// The version of its last migration.
        found: i64,
        /// The version of the last migration of this binary.
        needed: i64,
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
    Migration(#[from] MigrateError),
    /// The database failed right after it was opened.
    #[error("the database failed while it was being opened")]
    Store(#[source] StoreError),
}

/// Whether a database is to be migrated now, or why it is not to be opened. Whoever calls this holds
/// the lock under which databases are migrated, so that none is seen half-way.
pub(super) async fn must_migrate<C: Migrate>(
    connection: &mut C,
    has_history: bool,
    migrator: &Migrator,
    access: Access,
) -> Result<bool, OpenError> {
    let applied = if has_history {
        let table = &Migrator::DEFAULT.table_name;
        connection.list_applied_migrations(table).await?
    } else {
        Vec::new()
    };
    for there in &applied {
        let version = there.version;
        match migrator.iter().find(|known| known.version == version) {
            None => return Err(OpenError::NewerSchema(version)),
            Some(known) if known.checksum != there.checksum => {
                return Err(MigrateError::VersionMismatch(version).into());
            }
            Some(_) => {}
        }
    }
    let is_outdated = applied.len() < migrator.iter().len();
    let found = applied.iter().map(|there| there.version).max();
    match (found, access) {
        (None, Access::Look) => Err(OpenError::NoSchema),
        (Some(found), Access::Command | Access::Look) if is_outdated => {
            Err(OpenError::OlderSchema {
                found,
                needed: version(migrator),
            })
        }
        _ => Ok(is_outdated),
    }
}

fn version(migrator: &Migrator) -> i64 {
    let versions = migrator.iter().map(|migration| migration.version);
    versions.max().unwrap_or_default()
}

/// Opens the database of `url` with this schema.
pub async fn open(
    url: &str,
    access: Access,
    schema: Schema,
    entropy: &Entropy,
    now: Timestamp,
) -> Result<Arc<dyn Store>, OpenError> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => {
            super::postgres::open(url, access, schema, entropy, now).await
        }
        #[cfg(feature = "sqlite")]
        Some("sqlite") => super::sqlite::open(url, access, schema, entropy, now).await,
        _ => Err(OpenError::Url(
            "it begins with neither sqlite:// nor postgres://",
        )),
    }
}
