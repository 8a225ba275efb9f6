//! Countersign, a token service.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line, one file per family of subcommands |
//! | [`app`] | building, running and stopping; the tasks behind; the only updater of snapshots |
//! | [`http`] | everything that knows actix-web |
//! | [`account`] | what users do for themselves |
//! | [`admin`] | what operators do, for the admin interface and the command line alike |
//! | [`oauth`] | what clients do: authenticate, exchange credentials for tokens |
//! | [`identity`] | who a user is: passwords and signing in |
//! | [`revocation`] | which tokens are revoked, in memory |
//! | [`registry`] | clients and resources in memory |
//! | [`keys`] | signing keys: life cycle, sealing, the ring in memory |
//! | [`store`] | the database |
//! | [`domain`] | the nouns and their rules, pure |
//! | [`outbound`] | requests to others |
//! | [`throttle`] | how often something may happen |
//! | [`metrics`] | what is counted and measured |
//! | [`clock`], [`entropy`] | time and randomness, injected |
//! | [`config`], [`telemetry`] | settings, logs and traces, for `main`, `cli` and `app` |
//!
//! Imports go only downwards in this table; a test holds it so. See docs/architecture.md for the
//! walk of a request and for how to add a grant, a setting or an admin call.

pub mod account;
pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod entropy;
pub mod http;
pub mod identity;
pub mod keys;
pub mod metrics;
pub mod oauth;
pub mod outbound;
pub mod registry;
pub mod revocation;
pub mod store;
pub mod telemetry;
pub mod throttle;
