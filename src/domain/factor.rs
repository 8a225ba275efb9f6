//! Second factors: what users have enrolled beside their passwords, and what proving it is worth.

/// Names of methods (RFC 8176 §2).
pub mod method {
    /// "Proof-of-Possession (PoP) of a hardware-secured key": a passkey that stays on its device.
    pub const HARDWARE_KEY: &str = "hwk";
    /// "Multiple-factor authentication": stands beside the methods it was made of.
    pub const MULTIPLE: &str = "mfa";
    /// "One-time password": by an app, or from the list of recovery codes.
    pub const ONE_TIME: &str = "otp";
    /// "Password-based authentication".
    pub const PASSWORD: &str = "pwd";
    /// "Proof-of-Possession (PoP) of a software-secured key": a passkey that its user's devices share.
    pub const SOFTWARE_KEY: &str = "swk";
    /// "User presence test".
    pub const USER: &str = "user";
}

/// What one factor is worth (`acr`, `OpenID` Connect Core §2).
pub const ONE_FACTOR: &str = "urn:countersign:acr:1";

/// What two factors are worth, or a passkey that has verified its user.
pub const TWO_FACTORS: &str = "urn:countersign:acr:2";

/// All that there are, the weakest first.
pub const ACR_VALUES: [&str; 2] = [ONE_FACTOR, TWO_FACTORS];

/// What an authentication by these methods is worth.
pub fn acr<T: AsRef<str>>(amr: &[T]) -> &'static str {
    if amr.iter().any(|name| name.as_ref() == method::MULTIPLE) {
        TWO_FACTORS
    } else {
        ONE_FACTOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_factors_are_worth_more_than_one() {
        assert_eq!(acr(&["pwd"]), ONE_FACTOR);
        assert_eq!(acr::<&str>(&[]), ONE_FACTOR);
        assert_eq!(acr(&["pwd", "otp", "mfa"]), TWO_FACTORS);
        assert_eq!(acr(&["hwk", "user", "mfa"]), TWO_FACTORS);
    }
}
