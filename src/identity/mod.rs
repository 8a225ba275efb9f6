//! Who a user is: passwords, and signing in with them.
//!
//! Owns the only calls to the password hash, whose work is bounded here, and the rules for
//! passwords. Imports `store`, `domain`, `throttle`, `metrics`, `entropy` and `clock`. Speaks no
//! OAuth: what calls it turns a refusal into an answer.
//!
//! To add a way of proving to be a user: a file of its own, which answers with a
//! [`User`](crate::domain::user::User) or a refusal that does not tell whether there is such a user.

pub mod factor;
pub mod password;
pub mod session;
pub mod sign_in;
