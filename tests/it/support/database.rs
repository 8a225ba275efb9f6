//! Databases: one of its own for each test, on either engine.
//!
//! Those on Postgres are copies of a template that is migrated once per run, on the throw-away
//! server that `scripts/test` starts. A test that stops the server starts one of its own, a
//! [`Cluster`].

use std::{
    fs,
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use countersign::{
    clock::{Clock as _, SystemClock},
    entropy::Entropy,
    store::{self, Access, OpenError, Schema, Store},
};
use sqlx::{
    AssertSqlSafe, Connection as _, FromRow, PgConnection, SqliteConnection, postgres::PgRow,
    sqlite::SqliteRow,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use url::Url;

/// Names the server that `scripts/test` starts.
const SERVER: &str = "COUNTERSIGN_TEST_POSTGRES";

/// What keeps the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

/// A database of one test. Ends with it, or with the server it is on.
pub(crate) struct Database {
    engine: Engine,
    url: String,
    _folder: Option<TempDir>,
}

impl Database {
    /// A migrated database.
    pub(crate) async fn create(engine: Engine) -> Self {
        match engine {
            // Migrating a new file takes no longer than copying one.
            Engine::Sqlite => Self::empty(engine).await,
            Engine::Postgres => Self::on_server(template().await).await,
        }
    }

    /// A database that nobody has migrated; on `SQLite` not even a file.
    pub(crate) async fn empty(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                Self {
                    engine,
                    url: format!("sqlite://{}/countersign.db", folder.path().display()),
                    _folder: Some(folder),
                }
            }
            Engine::Postgres => Self::on_server("template0").await,
        }
    }

    /// A copy of a database of the server.
    async fn on_server(template: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!(
            "countersign_{}_{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        create_on_server(&name, template).await;
        Self {
            engine: Engine::Postgres,
            url: url_on_server(&name),
            _folder: None,
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Opens it as one more node would, or as a command beside a running server.
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        self.try_open(Access::Command).await.unwrap()
    }

    pub(crate) async fn try_open(&self, access: Access) -> Result<Arc<dyn Store>, OpenError> {
        open(&self.url, access).await
    }

    /// Loses everything in a database on Postgres, whoever is connected; it is there, and empty.
    pub(crate) async fn lose(&self) {
        let url = Url::parse(&self.url).unwrap();
        let name = url.path().trim_start_matches('/');
        let mut connection = PgConnection::connect(&url_on_server("postgres"))
            .await
            .unwrap();
        let drop = format!("drop database {name} with (force)");
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        create_on_server(name, "template0").await;
    }

    /// Runs SQL behind the store's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql);
        match self.engine {
            Engine::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Engine::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Lets nobody write into a file of `SQLite` until what is returned is dropped.
    pub(crate) async fn lock(&self) -> SqliteConnection {
        assert_eq!(self.engine, Engine::Sqlite);
        let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
        let begun = sqlx::raw_sql("begin immediate")
            .execute(&mut connection)
            .await;
        begun.unwrap();
        connection
    }

    /// Returns when somebody waits for a lock of Postgres here.
    pub(crate) async fn wait_for_a_lock(&self) {
        let waiting = "select count(*) from pg_stat_activity \
             where datname = current_database() and wait_event_type = 'Lock'";
        while self.rows::<(i64,)>(waiting).await == [(0,)] {}
    }

    /// The rows of a query behind the store's back, as tuples.
    pub(crate) async fn rows<T>(&self, sql: &'static str) -> Vec<T>
    where
        T: Send + Unpin + for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>,
    {
        match self.engine {
            Engine::Sqlite => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                let rows = sqlx::query_as(sql).fetch_all(&mut connection).await;
                connection.close().await.unwrap();
                rows.unwrap()
            }
            Engine::Postgres => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                let rows = sqlx::query_as(sql).fetch_all(&mut connection).await;
                connection.close().await.unwrap();
                rows.unwrap()
            }
        }
    }

    /// Everything in these tables, whatever it is.
    pub(crate) async fn dump<'a>(&self, tables: &[&'a str]) -> Vec<(&'a str, Vec<String>)> {
        let columns: Vec<(String, String)> = match self.engine {
            Engine::Postgres => Vec::new(),
            Engine::Sqlite => {
                let all = "select t.name, c.name from sqlite_schema t, pragma_table_info(t.name) c \
                     where t.type = 'table'";
                self.rows(all).await
            }
        };
        // One look, as each takes a connection.
        let looks = tables.iter().map(|table| match self.engine {
            Engine::Postgres => format!("select '{table}', t::text from {table} t"),
            Engine::Sqlite => {
                let own = columns.iter().filter(|(of, _)| of == table);
                let own: Vec<String> = own.map(|(_, name)| format!("quote(\"{name}\")")).collect();
                format!("select '{table}', {} from {table}", own.join("||','||"))
            }
        });
        let looks: Vec<String> = looks.collect();
        let sql = format!("{} order by 1, 2", looks.join(" union all "));
        let rows: Vec<(String, String)> = self.rows(statement(sql)).await;
        let of = |table: &str| {
            let own = rows.iter().filter(|(of, _)| of == table);
            own.map(|(_, row)| row.clone()).collect()
        };
        tables.iter().map(|table| (*table, of(table))).collect()
    }

    /// Lets every writing to a table fail.
    pub(crate) async fn break_table(&self, table: &str) {
        let sql = match self.engine {
            Engine::Postgres => format!(
                "create or replace function fault() returns trigger language plpgsql as \
                 $$ begin raise exception 'injected' using errcode = '53100'; end $$; \
                 create trigger fault before insert or update or delete on {table} \
                 for each row execute function fault()"
            ),
            Engine::Sqlite => ["insert", "update", "delete"]
                .map(|act| {
                    format!(
                        "create trigger fault_{act} before {act} on {table} \
                         begin select raise(abort, 'injected'); end;"
                    )
                })
                .concat(),
        };
        self.execute(&sql).await;
    }

    /// Lets it succeed again.
    pub(crate) async fn mend_table(&self, table: &str) {
        let sql = match self.engine {
            Engine::Postgres => format!("drop trigger fault on {table}"),
            Engine::Sqlite => ["insert", "update", "delete"]
                .map(|act| format!("drop trigger fault_{act};"))
                .concat(),
        };
        self.execute(&sql).await;
    }
}

/// A statement that lives as long as the tests, as those of tests do.
pub(crate) fn statement(sql: String) -> &'static str {
    Box::leak(sql.into_boxed_str())
}

/// Opens the database of a URL.
pub(crate) async fn open(url: &str, access: Access) -> Result<Arc<dyn Store>, OpenError> {
    open_with(url, access, Schema::default()).await
}

/// Opens the database of a URL as a binary with this schema does.
pub(crate) async fn open_with(
    url: &str,
    access: Access,
    schema: Schema,
) -> Result<Arc<dyn Store>, OpenError> {
    let now = SystemClock::new().now();
    store::open(url, access, schema, &Entropy::new(), now).await
}

/// The URL of a database of the server.
fn url_on_server(name: &str) -> String {
    let server = std::env::var(SERVER).unwrap_or_else(|_| {
        panic!("{SERVER} names no Postgres server: run scripts/test, which starts one.")
    });
    let mut url = Url::parse(&server).unwrap();
    url.set_path(name);
    url.into()
}

async fn create_on_server(name: &str, template: &str) {
    let mut connection = PgConnection::connect(&url_on_server("postgres"))
        .await
        .unwrap();
    let sql = format!("create database {name} template {template}");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// The name of a migrated database that nobody is connected to, so that it can be copied.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let name = format!("countersign_{}_template", process::id());
            create_on_server(&name, "template0").await;
            let store = open(&url_on_server(&name), Access::Command).await.unwrap();
            store.close().await;
            name
        })
        .await
}

/// Whether a cluster's commits wait for the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Durability {
    /// Never; all settings are for speed.
    Fast,
    /// Always; the server's own defaults.
    Durable,
}

/// A Postgres server of one test, to be stopped and started. Removed with its data when dropped.
pub(crate) struct Cluster {
    folder: PathBuf,
    url: String,
}

impl Cluster {
    pub(crate) fn start(durability: Durability) -> Self {
        // In /tmp because the path of a socket must be short.
        let folder = tempfile::Builder::new()
            .prefix("countersign-test.")
            .tempdir_in("/tmp")
            .unwrap()
            .keep();
        // From this `scripts/test` can tell what a killed run has left behind.
        fs::write(folder.join("owner"), process::id().to_string()).unwrap();
        let mut cluster = Self {
            folder,
            url: String::new(),
        };
        cluster.url = cluster.script(
            "start",
            match durability {
                Durability::Fast => &["fast"],
                Durability::Durable => &["durable"],
            },
        );
        cluster
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops the server in an orderly way.
    pub(crate) fn stop(&self) {
        self.script("stop", &["fast"]);
    }

    /// Ends the server without letting it write anything more.
    pub(crate) fn crash(&self) {
        self.script("stop", &["immediate"]);
    }

    /// Starts the server with the data it had, at the same URL.
    pub(crate) fn start_again(&self) {
        self.script("start", &[]);
    }

    /// Runs a command of `scripts/postgres` and returns what it prints.
    fn script(&self, command: &str, arguments: &[&str]) -> String {
        let output = self.command(command).args(arguments).output().unwrap();
        assert!(output.status.success(), "scripts/postgres {command} failed");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn command(&self, command: &str) -> Command {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres");
        let mut process = Command::new(script);
        process
            .arg(command)
            .arg(&self.folder)
            .stderr(Stdio::inherit());
        process
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A panic here, while a test fails, would end all others.
        let _ = self.command("remove").status();
    }
}
