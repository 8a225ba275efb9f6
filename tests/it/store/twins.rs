//! The migrations of both engines say the same.

use super::{Database, Engine};

/// Every column in order: table, name, whether it must have a value.
type Column = (String, String, bool);

#[tokio::test]
async fn both_engines_have_the_same_tables_and_columns() {
    let sqlite = Database::create(Engine::Sqlite).await;
    sqlite.open().await.close().await;
    let sqlite: Vec<Column> = sqlite
        .rows(
            "select t.name, c.name, c.\"notnull\" or c.pk > 0 \
             from sqlite_schema t join pragma_table_info(t.name) c \
             where t.type = 'table' and t.name not like 'sqlite%' order by t.name, c.cid",
        )
        .await;
    let postgres: Vec<Column> = Database::create(Engine::Postgres)
        .await
        .rows(
            "select table_name::text, column_name::text, is_nullable = 'NO' \
             from information_schema.columns where table_schema = 'public' \
             order by table_name::text, ordinal_position",
        )
        .await;
    assert!(sqlite.len() > 50);
    assert_eq!(sqlite, postgres);
}

#[tokio::test]
async fn both_engines_have_the_same_indexes() {
    let sqlite = Database::create(Engine::Sqlite).await;
    sqlite.open().await.close().await;
    let sqlite: Vec<(String, String)> = sqlite
        .rows(
            "select tbl_name, name from sqlite_schema \
             where type = 'index' and sql is not null order by tbl_name, name",
        )
        .await;
    let postgres: Vec<(String, String)> = Database::create(Engine::Postgres)
        .await
        .rows(
            "select tablename::text, indexname::text from pg_indexes \
             where schemaname = 'public' and not exists \
             (select 1 from pg_constraint where conname = indexname) \
             order by tablename::text, indexname::text",
        )
        .await;
    assert_eq!(sqlite, postgres);
}
