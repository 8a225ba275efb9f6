//! Authorization codes (RFC 6749 §4.1.2): used once, within a minute.

use std::time::Duration;

use countersign_verifier::base64url;

use super::{
    change::Cause,
    digest::sha256,
    factor::Proved,
    family::{Family, Grant, Refusal, Standing, Terms},
    id::{ClientId, FamilyId},
    resource::ResourceUri,
    scope::Scope,
    secret::SecretHash,
};
use crate::clock::Timestamp;

/// How long a code may be exchanged: "A maximum authorization code lifetime of 10 minutes is
/// RECOMMENDED" (RFC 6749 §4.1.2); programs need seconds.
pub const CODE_LIFE: Duration = Duration::from_mins(1);

/// How long a sign-in without a browser may take, from its first step.
pub const CHALLENGE_LIFE: Duration = Duration::from_mins(10);

/// The S256 transformation of a code verifier (RFC 7636 §4.2); none of a text that is no verifier:
/// 43 to 128 characters of `A-Z a-z 0-9 - . _ ~` (§4.1).
///
/// # Security
/// Whoever sends a request chooses `verifier`. A shorter one could be guessed from its challenge.
pub fn s256(verifier: &str) -> Option<String> {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_verifier = (43..=128).contains(&verifier.len()) && verifier.bytes().all(is_unreserved);
    is_verifier.then(|| base64url::encode(&sha256(verifier)))
}

/// Whether a text can be the S256 transformation of anything: 32 bytes in base64url.
pub fn is_s256(challenge: &str) -> bool {
    base64url::decode(challenge).is_ok_and(|bytes| bytes.len() == 32)
}

/// A code, as stored under the hash of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationCode {
    /// What it stands for.
    pub grant: Grant,
    /// Where the answer was sent that carried it; none where no redirect was used.
    pub redirect_uri: Option<String>,
    /// The S256 challenge (RFC 7636 §4.2) that its verifier must match.
    pub code_challenge: Option<String>,
    /// What the ID Token is to repeat.
    pub nonce: Option<String>,
    /// When it can no longer be exchanged.
    pub expires_at: Timestamp,
    /// The family that it was exchanged for.
    pub family_id: Option<FamilyId>,
}

/// A code that an authenticated client presents.
#[derive(Clone, Debug)]
pub struct Redemption {
    /// The hash of the code.
    pub hash: SecretHash,
    /// The client.
    pub client_id: ClientId,
    /// The S256 transformation of the verifier that it presents.
    pub code_challenge: Option<String>,
    /// The redirect URI that it presents.
    pub redirect_uri: Option<String>,
    /// Thumbprint of the key that the client has proved to hold.
    pub dpop_jkt: Option<String>,
    /// No more than this scope is asked for at first; the family has all that was granted.
    pub scope: Option<Scope>,
    /// No more than these resources, likewise; none are all.
    pub resources: Vec<ResourceUri>,
    /// The id of the family to open.
    pub family_id: FamilyId,
    /// Whether that is to stand for the session at the client. One that does already is kept; none is
    /// opened where the last one was ended and the user has not authenticated since.
    pub for_session: bool,
    /// How long it may live.
    pub lifetime: Duration,
    /// On what terms.
    pub terms: Terms,
    /// Where the request came from.
    pub cause: Cause,
}

/// Why a code is not exchanged. Only [`Self::Reused`] changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeRefusal {
    /// There is no such code, or there is no more.
    Unknown,
    /// It is another client's.
    OtherClient,
    /// It has expired.
    Expired,
    /// No verifier was presented.
    VerifierMissing,
    /// A verifier was presented, but no challenge was.
    VerifierUnexpected,
    /// The verifier does not match.
    Verifier,
    /// The redirect URI does not match.
    RedirectUri,
    /// It is bound to another key.
    OtherKey,
    /// It has been exchanged before: what it was exchanged for ends, unless that stands for a session.
    Reused,
    /// Client or user may not have what it stands for any more, or it does not stand for what is
    /// asked for.
    Grant(Refusal),
}

/// What the exchange of a code has led to.
#[derive(Clone, Debug)]
pub enum Redeemed {
    /// A family.
    Opened {
        /// The family.
        family: Box<Family>,
        /// Its client and user.
        standing: Box<Standing>,
        /// What the ID Token is to repeat.
        nonce: Option<String>,
    },
    /// Nothing.
    Refused(CodeRefusal),
}

impl AuthorizationCode {
    /// Why the code may not be exchanged, if so. Whether it has been used is asked last: whoever
    /// could not have exchanged it cannot end what its client got for it.
    pub fn refusal(&self, redemption: &Redemption, now: Timestamp) -> Option<CodeRefusal> {
        if redemption.client_id != self.grant.client_id {
            return Some(CodeRefusal::OtherClient);
        }
        if self.expires_at <= now {
            return Some(CodeRefusal::Expired);
        }
        match (&self.code_challenge, &redemption.code_challenge) {
            (Some(_), None) => return Some(CodeRefusal::VerifierMissing),
            (None, Some(_)) => return Some(CodeRefusal::VerifierUnexpected),
            (expected, presented) if expected != presented => return Some(CodeRefusal::Verifier),
            _ => {}
        }
        // Without a challenge it has to be there (RFC 6749 §4.1.3).
        let is_asked = redemption.redirect_uri.is_some() || self.code_challenge.is_none();
        if is_asked && redemption.redirect_uri != self.redirect_uri {
            return Some(CodeRefusal::RedirectUri);
        }
        if self.grant.dpop_jkt.is_some() && redemption.dpop_jkt != self.grant.dpop_jkt {
            return Some(CodeRefusal::OtherKey);
        }
        let asked = (redemption.scope.as_ref(), redemption.resources.as_slice());
        if let Some(refusal) = self.grant.lacks(asked) {
            return Some(CodeRefusal::Grant(refusal));
        }
        self.family_id.map(|_| CodeRefusal::Reused)
    }
}

/// A sign-in without a browser that is not finished, as stored under the hash of its `auth_session`
/// (draft-ietf-oauth-first-party-apps).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChallengeSession {
    /// The client that it belongs to; nobody else can go on with it.
    pub client_id: ClientId,
    /// The client's epoch when it began.
    pub client_epoch: i64,
    /// Who is signing in, as entered: there need not be such a user.
    pub username: String,
    /// The S256 challenge for the code.
    pub code_challenge: String,
    /// What is asked for.
    pub scope: Scope,
    /// Where.
    pub resources: Vec<ResourceUri>,
    /// Thumbprint of the key that the client has proved to hold.
    pub dpop_jkt: Option<String>,
    /// How many steps of it have failed.
    pub failures: u32,
    /// When it is over.
    pub expires_at: Timestamp,
    /// What was proved so far; none before the password.
    pub proved: Option<Proved>,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{claims::RequestedClaims, id::UserId};

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    /// RFC 7636 Appendix B.
    #[test]
    fn a_challenge_is_the_hash_of_its_verifier() {
        let challenge = s256("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk").unwrap();
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert!(is_s256(&challenge));
    }

    #[test]
    fn a_verifier_is_43_to_128_unreserved_characters() {
        for good in ["~".repeat(43), "a.-_".repeat(32)] {
            assert!(s256(&good).is_some(), "{good}");
        }
        let plus = "a".repeat(42) + "+";
        let umlaut = "a".repeat(42) + "ä";
        for bad in ["", &"a".repeat(42), &"a".repeat(129), &plus, &umlaut] {
            assert_eq!(s256(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_challenge_has_one_spelling() {
        let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        for bad in [
            "",
            "plain",
            &challenge.replace('M', "N"),
            &format!("{challenge}="),
            &challenge.replace('-', "+"),
            &"A".repeat(44),
        ] {
            assert!(!is_s256(bad), "{bad}");
        }
    }

    /// A code with everything, and what must be presented with it.
    fn pair() -> (AuthorizationCode, Redemption) {
        let client_id = ClientId::parse("app").unwrap();
        let code = AuthorizationCode {
            grant: Grant {
                client_id: client_id.clone(),
                client_epoch: 1,
                subject: UserId::from_uuid(Uuid::nil()),
                user_epoch: 2,
                session_id: None,
                scope: Scope::parse("read write").unwrap(),
                resources: vec![ResourceUri::parse("urn:a").unwrap()],
                auth_time: NOW,
                amr: Vec::new(),
                dpop_jkt: Some("key".to_owned()),
                claims: RequestedClaims::default(),
            },
            redirect_uri: Some("https://app.example".to_owned()),
            code_challenge: Some("challenge".to_owned()),
            nonce: None,
            expires_at: NOW.plus(CODE_LIFE),
            family_id: None,
        };
        let redemption = Redemption {
            hash: SecretHash::of("code"),
            client_id,
            code_challenge: code.code_challenge.clone(),
            redirect_uri: code.redirect_uri.clone(),
            dpop_jkt: code.grant.dpop_jkt.clone(),
            scope: None,
            resources: Vec::new(),
            family_id: FamilyId::from_uuid(Uuid::nil()),
            for_session: false,
            lifetime: Duration::from_hours(1),
            terms: Terms {
                mac_version: 1,
                idle: Duration::from_hours(1),
                tokens_die_at: NOW,
            },
            cause: Cause::default(),
        };
        (code, redemption)
    }

    /// What can be wrong, in the order in which it is told, and how it comes about.
    type Wrong = (CodeRefusal, fn(&mut AuthorizationCode, &mut Redemption));

    const WRONGS: [Wrong; 8] = [
        (CodeRefusal::OtherClient, |_, redemption| {
            redemption.client_id = ClientId::parse("other").unwrap();
        }),
        (CodeRefusal::Expired, |code, _| code.expires_at = NOW),
        (CodeRefusal::Verifier, |_, redemption| {
            redemption.code_challenge = Some("other".to_owned());
        }),
        (CodeRefusal::RedirectUri, |_, redemption| {
            redemption.redirect_uri = Some("https://other.example".to_owned());
        }),
        (CodeRefusal::OtherKey, |_, redemption| {
            redemption.dpop_jkt = None;
        }),
        (CodeRefusal::Grant(Refusal::Scope), |_, redemption| {
            redemption.scope = Some(Scope::parse("read admin").unwrap());
        }),
        (CodeRefusal::Grant(Refusal::Target), |_, redemption| {
            redemption.resources = vec![ResourceUri::parse("urn:b").unwrap()];
        }),
        (CodeRefusal::Reused, |code, _| {
            code.family_id = Some(FamilyId::from_uuid(Uuid::max()));
        }),
    ];

    /// So nobody who could not have exchanged a code ends what its client got for it.
    #[test]
    fn of_all_that_is_wrong_with_a_code_the_first_is_told() {
        for chosen in 0..1 << WRONGS.len() {
            let (mut code, mut redemption) = pair();
            let wrongs = WRONGS.iter().enumerate();
            let wrongs: Vec<_> = wrongs
                .filter(|(place, _)| chosen >> place & 1 == 1)
                .map(|(_, wrong)| wrong)
                .collect();
            for (_, bring_about) in &wrongs {
                bring_about(&mut code, &mut redemption);
            }
            let first = wrongs.first().map(|(refusal, _)| *refusal);
            assert_eq!(code.refusal(&redemption, NOW), first);
        }
    }

    #[test]
    fn a_challenge_and_a_verifier_belong_together() {
        let (mut code, mut redemption) = pair();
        redemption.code_challenge = None;
        let refusal = code.refusal(&redemption, NOW);
        assert_eq!(refusal, Some(CodeRefusal::VerifierMissing));
        code.code_challenge = None;
        assert_eq!(code.refusal(&redemption, NOW), None);
        redemption.code_challenge = Some("challenge".to_owned());
        let refusal = code.refusal(&redemption, NOW);
        assert_eq!(refusal, Some(CodeRefusal::VerifierUnexpected));
    }

    #[test]
    fn a_redirect_need_not_be_said_again_and_a_key_may_be_shown_unasked() {
        let (mut code, mut redemption) = pair();
        redemption.redirect_uri = None;
        code.grant.dpop_jkt = None;
        assert_eq!(code.refusal(&redemption, NOW), None);
        code.redirect_uri = None;
        redemption.redirect_uri = Some(String::new());
        let refusal = code.refusal(&redemption, NOW);
        assert_eq!(refusal, Some(CodeRefusal::RedirectUri));
    }
}
