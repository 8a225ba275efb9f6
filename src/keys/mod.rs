//! Signing keys: their life cycle, their sealing at rest, and the ring of parsed keys in memory.
//!
//! [`lifecycle`] is pure and decides; [`sealing`] and [`master`] protect; [`ring`] is what a node
//! signs with and publishes. Nothing here writes to the database: `admin::key` applies what
//! `lifecycle` has planned.
//!
//! To hold keys elsewhere (PKCS#11, a KMS): implement [`signer::Signer`] and let
//! [`ring::KeyRing::open`] build it from the record.

pub mod lifecycle;
pub mod master;
pub mod ring;
pub mod sealing;
pub mod signer;
