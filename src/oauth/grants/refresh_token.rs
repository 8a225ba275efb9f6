//! The refresh token grant (RFC 6749 §6): a token that is spent with its use, for the next one.

use super::sign_in;
use crate::{
    domain::{
        change::{Cause, Origin},
        client::Client,
        family::{Intent, Outcome, Presentation, RefreshPolicy, Refusal, Turn, Verdict},
    },
    oauth::{
        access_token::{self, Narrowing},
        error::{ErrorCode, OAuthError},
        form::Form,
        refresh_tokens,
        token::{TokenEndpoint, TokenResponse},
    },
};

/// Exchanges a refresh token for an access token and the refresh token that comes after it.
///
/// What the verdict changes is committed before this returns, also where the request is refused.
pub(in crate::oauth) async fn exchange(
    endpoint: &TokenEndpoint,
    client: &Client,
    form: &Form,
    origin: &Origin,
) -> Result<TokenResponse, OAuthError> {
    let text = form
        .one("refresh_token")?
        .ok_or_else(|| OAuthError::malformed("refresh_token is missing"))?;
    let asked = Narrowing::of_request(form)?;
    let token = endpoint.refresh_tokens.verify(text).await?;
    // Otherwise nobody could tell afterwards what has become of the token.
    endpoint.minter.check_ready()?;
    endpoint.minter.check_id_tokens(client)?;
    let offered = {
        let registry = endpoint.minter.snapshots.registry();
        asked.check(client, &registry)?;
        access_token::offered_for_users(client, &registry)
    };
    let presented = Presentation {
        family: token.family,
        counter: i64::try_from(token.counter).map_err(|_| refresh_tokens::unknown_token())?,
        mac_version: token.mac_version,
        client_id: client.client_id.clone(),
        dpop_jkt: None,
        intent: Intent::Refresh {
            scope: asked.scope.clone(),
            resources: asked.resources.clone(),
            offered,
        },
        cause: Cause::of_request(&client.client_id, origin, None),
    };
    let is_strict = client.refresh_policy == RefreshPolicy::Strict;
    let (outcome, judged_at) = endpoint.rotations.submit(presented, is_strict).await?;
    match &outcome {
        Outcome::Judged {
            verdict: Verdict::Granted(_),
            family,
            standing,
        } => {
            // "It SHOULD NOT have a nonce Claim, even when the ID Token issued at the time of the
            // original authentication contained nonce" (OpenID Connect Core §12.2).
            let rotated = (&**family, &**standing, None);
            sign_in::answer(endpoint, client, rotated, &asked, judged_at).await
        }
        Outcome::Judged {
            verdict: Verdict::Refused(refusal),
            ..
        } => Err(sign_in::refusal(*refusal)),
        Outcome::Judged {
            verdict: Verdict::Reused,
            ..
        } => Err(reused()),
        // A refresh ends nothing but by reuse.
        Outcome::Judged {
            verdict: Verdict::Ended,
            ..
        } => Err(sign_in::refusal(Refusal::Ended)),
        Outcome::Unknown => Err(sign_in::refusal(Refusal::Unknown)),
        Outcome::Illegible => Err(OAuthError::internal("the family cannot be read")),
        Outcome::Locked => Err(OAuthError::no_database()),
    }
}

const fn reused() -> OAuthError {
    OAuthError::new(
        ErrorCode::InvalidGrant,
        "reuse",
        "a spent refresh token was used again: the session is ended, as the token may have been stolen; sign in again",
    )
}

/// What becomes of a token, in the word of the metrics; for a refusal, that of the answer.
pub(in crate::oauth) fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Judged { verdict, .. } => match verdict {
            Verdict::Granted(Turn::Kept) => "kept",
            Verdict::Granted(Turn::Recovered) => "recovered",
            Verdict::Granted(Turn::Replayed { .. }) => "replayed",
            Verdict::Granted(Turn::Rotated) => "rotated",
            Verdict::Ended => "ended",
            Verdict::Refused(refusal) => sign_in::refusal(*refusal).reason(),
            Verdict::Reused => reused().reason(),
        },
        Outcome::Unknown => sign_in::refusal(Refusal::Unknown).reason(),
        Outcome::Illegible => "illegible",
        Outcome::Locked => "locked",
    }
}
