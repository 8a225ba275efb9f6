//! The HTTP interface as its users see it: black box, over real connections.
//!
//! One file for each endpoint, or for each side of one; a test is named after the rule it holds.
//! `support::server` starts a server. What depends on the database runs on both engines, through
//! `on_both_engines!`.

/// Makes each case a test on each engine. A case takes the engine.
macro_rules! on_both_engines {
    ($($case:ident,)+) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $case() {
                super::$case(crate::support::database::Engine::Sqlite).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $case() {
                super::$case(crate::support::database::Engine::Postgres).await;
            })+
        }
    };
}

mod admin;
mod browser;
mod challenge;
mod connections;
mod coverage;
mod forged;
mod health;
mod introspection;
mod jwks;
mod log;
mod metadata;
mod metrics;
mod openid;
mod session;
mod stop;
mod sweeping;
mod tls;
mod token;
