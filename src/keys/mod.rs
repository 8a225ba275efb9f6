//! Signing keys and refresh-MAC keys: their life cycle, their sealing at rest, and the rings of parsed
//! keys in memory.
//!
//! [`lifecycle`] is pure and decides; [`sealing`] and [`master`] protect; [`ring`] is what a node
//! signs with and publishes, [`rs256`] the keys therein of ID Tokens for clients that want RSA, [`mac`] what a
//! node makes and verifies refresh tokens with. Nothing here writes to the database: `admin::key`
//! applies what `lifecycle` has planned.
//!
//! To hold keys elsewhere (PKCS#11, a KMS): implement [`signer::Signer`] and let
//! [`ring::KeyRing::open`] build it from the record.

pub mod browser_state;
pub mod lifecycle;
pub mod mac;
pub mod master;
pub mod ring;
pub mod rs256;
pub mod sealing;
pub mod signer;
