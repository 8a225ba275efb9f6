//! The `claims` parameter (`OpenID` Connect Core §5.5): claims that are asked for by name.

use countersign_verifier::json;
use serde_json::{Map, Value};

use crate::{
    domain::{claims::RequestedClaims, client::Client, profile},
    oauth::error::{ErrorCode, OAuthError},
};

/// The longest parameter that is read, in bytes.
const LONGEST: usize = 4096;

/// What the parameter asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClaimsParameter {
    /// Standard claims that the client may have: others are passed over, and so is what is wanted of
    /// their values.
    pub(super) names: RequestedClaims,
    /// Whom the ID Token is to be about (§5.5.1): each of them, if there are several.
    pub(super) subjects: Vec<String>,
    /// What the user is to have authenticated by, best first (§5.5.1.1).
    pub(super) acr: Vec<String>,
    /// Whether it has to be one of these.
    pub(super) is_acr_essential: bool,
}

impl ClaimsParameter {
    /// Reads the parameter.
    ///
    /// # Errors
    /// `invalid_request` for what is too long or not as §5.5 has it; members that are not known mean
    /// nothing.
    ///
    /// # Security
    /// Whoever sends a browser here chooses it.
    pub(super) fn parse(text: &str, client: &Client) -> Result<Self, OAuthError> {
        if text.len() > LONGEST {
            return Err(OAuthError::new(
                ErrorCode::InvalidRequest,
                "too_long",
                "claims is too long",
            ));
        }
        let request = json::parse_object(text.as_bytes()).map_err(|_| malformed())?;
        let mut parameter = Self::default();
        for member in ["id_token", "userinfo"] {
            let wanted = request.member(member, "an object", Value::as_object);
            let Some(wanted) = wanted.map_err(|_| malformed())? else {
                continue;
            };
            let names = if member == "id_token" {
                &mut parameter.names.id_token
            } else {
                &mut parameter.names.userinfo
            };
            for (name, value) in wanted {
                let individual = match value {
                    Value::Null => None,
                    Value::Object(individual) => Some(individual),
                    _ => return Err(malformed()),
                };
                check(individual)?;
                if name == "sub" {
                    let subject = individual.and_then(|individual| individual.get("value"));
                    let subject = subject.map(|subject| subject.as_str().ok_or_else(malformed));
                    parameter
                        .subjects
                        .extend(subject.transpose()?.map(str::to_owned));
                }
                if name == "acr" && member == "id_token" {
                    parameter.acr = individual.map(values).unwrap_or_default();
                    let essential = individual.and_then(|it| it.get("essential"));
                    parameter.is_acr_essential =
                        essential == Some(&Value::Bool(true)) && !parameter.acr.is_empty();
                }
                let scope = profile::scope_of(name);
                if scope.is_some_and(|scope| client.scope.contains(scope)) {
                    names.insert(name.clone());
                }
            }
        }
        Ok(parameter)
    }
}

/// §5.5.1: `essential` is a boolean and `values` an array; a value is of whatever type its claim has.
fn check(individual: Option<&Map<String, Value>>) -> Result<(), OAuthError> {
    let Some(individual) = individual else {
        return Ok(());
    };
    let is_right = |name: &str, is: fn(&Value) -> bool| individual.get(name).is_none_or(is);
    if is_right("essential", Value::is_boolean) && is_right("values", Value::is_array) {
        Ok(())
    } else {
        Err(malformed())
    }
}

/// The values one of which is wanted.
fn values(individual: &Map<String, Value>) -> Vec<String> {
    let several = individual.get("values").and_then(Value::as_array);
    let values = individual.get("value").into_iter();
    let values = values.chain(several.into_iter().flatten());
    values
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

const fn malformed() -> OAuthError {
    OAuthError::malformed("claims is not a request for claims in JSON")
}
