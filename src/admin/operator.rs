//! Operators: who calls the admin interface, and how far their authority goes.

use countersign_verifier::{AccessTokenClaims, Audience};

use super::{AdminError, resource};
use crate::{
    domain::{client::Client, id::ClientId, scope::Scope},
    oauth::live_token::LiveTokens,
};

/// What whoever asks for a change may do at the admin interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// The command line: whoever has the database has everything.
    #[default]
    Everything,
    /// An operator.
    Scopes(Scope),
}

impl Authority {
    /// Refuses to touch a client that may do more at the admin interface than whoever asks.
    ///
    /// Given the client before and after the change, so that nobody grants what they lack, and
    /// nobody takes over, weakens or removes a client above them.
    pub(super) fn permits<'a>(
        &self,
        issuer: &str,
        clients: impl IntoIterator<Item = &'a Client>,
    ) -> Result<(), AdminError> {
        let Self::Scopes(own) = self else {
            return Ok(());
        };
        for client in clients {
            let theirs = admin_scope(client, issuer);
            if !theirs.is_within(own) {
                return Err(AdminError::Forbidden(format!(
                    "the client has, or would have, more authority at the admin interface than you: {}",
                    theirs.without(own)
                )));
            }
        }
        Ok(())
    }
}

/// What a client may do at the admin interface; disabled or not, as it can be enabled again.
fn admin_scope(client: &Client, issuer: &str) -> Scope {
    match resource::admin(issuer) {
        Some(admin) if client.resources.contains(&admin.resource) => {
            client.scope.intersection(&admin.scopes)
        }
        _ => Scope::default(),
    }
}

/// An operator whose token was accepted.
#[derive(Debug)]
pub struct Operator {
    /// The client.
    pub client_id: ClientId,
    /// What its token allows and the client may still do.
    pub scope: Scope,
}

/// Why an operator's token was not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// The token, or the client it was issued to, is not good at the admin interface.
    #[error("the access token is not valid at the admin interface")]
    InvalidToken,
    /// The token does not allow the call.
    #[error("the access token does not have the scope of this call")]
    InsufficientScope,
    /// This node has lost its database for too long to judge.
    #[error("the service has lost its database for too long to judge access tokens")]
    Offline,
}

/// Judges operators' access tokens, from memory.
pub struct OperatorGate {
    /// Tells tokens that are good.
    pub tokens: LiveTokens,
}

impl OperatorGate {
    /// The operator that presents `token` for a call that needs `scope`.
    ///
    /// A refusal of what this issuer has signed waits for one look at the database, so that an
    /// operator who was registered on another node is known here.
    ///
    /// # Security
    /// `token` comes from whoever sends the request.
    pub async fn admit(&self, token: &str, scope: &str) -> Result<Operator, OperatorError> {
        match self.judge(token, scope) {
            Err(OperatorError::InvalidToken | OperatorError::InsufficientScope)
                if self.tokens.genuine(token, self.audience()).is_some() => {}
            judged => return judged,
        }
        self.tokens.renewed().await;
        self.judge(token, scope)
    }

    fn judge(&self, token: &str, scope: &str) -> Result<Operator, OperatorError> {
        let claims = self.tokens.find(token);
        let claims = claims.map_err(|_| OperatorError::Offline)?;
        let operator = claims.and_then(|claims| self.operator(&claims));
        let operator = operator.ok_or(OperatorError::InvalidToken)?;
        if operator.scope.contains(scope) {
            Ok(operator)
        } else {
            Err(OperatorError::InsufficientScope)
        }
    }

    fn audience(&self) -> String {
        format!("{}/admin", self.tokens.issuer)
    }

    /// The operator of a good token: its client as it is now.
    fn operator(&self, claims: &AccessTokenClaims<'_>) -> Option<Operator> {
        // Whoever receives a token can use it wherever else it is good: one for several is not ours.
        let is_ours = matches!(&claims.aud, Audience::One(aud) if *aud == self.audience());
        let client_id = ClientId::parse(&claims.client_id).ok()?;
        let registry = self.tokens.snapshots.registry();
        let client = registry.client(&client_id)?;
        let is_its_own = *claims.sub == *client_id.as_str();
        let is_operator = client.resources.iter().any(|uri| registry.is_admin(uri));
        let granted = Scope::parse(claims.scope.as_deref().unwrap_or_default()).ok()?;
        (is_ours && is_its_own && is_operator && !client.disabled).then(|| Operator {
            scope: granted.intersection(&admin_scope(client, &self.tokens.issuer)),
            client_id,
        })
    }
}
