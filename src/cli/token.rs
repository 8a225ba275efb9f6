//! `countersign token …`

use std::io::Read as _;

use clap::{Args, Subcommand};
use countersign_verifier::{Expectation, Finding, inspect};
use serde_json::{Value, json};

use super::{Failure, output};
use crate::app::Context;

/// The longest input that is read, in bytes.
const LONGEST_INPUT: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell claim by claim whether an access token is right
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The resource that the token must be for; without it, any will do
    #[arg(long, value_name = "URI")]
    audience: Option<String>,
    /// A JWT, or the answer of the token endpoint; - or nothing reads standard input
    #[arg(value_name = "TOKEN|-", default_value = "-", hide_default_value = true)]
    token: String,
}

impl Verify {
    pub(super) async fn run(self, context: &Context, json: bool) -> Result<(), Failure> {
        let input = match self.token.as_str() {
            "-" => read_input()?,
            token => token.to_owned(),
        };
        let token = token_of(&input)?;
        let now = context.clock.now();
        let keys = context.keys().ring().await?.key_set(now);
        if keys.kids().next().is_none() {
            return Err(Failure::message(
                "the database holds no keys to verify with; start the service once",
            ));
        }
        let any_audience = self.audience.is_none();
        let expected = Expectation {
            issuer: context.issuer.clone(),
            audience: self.audience,
            leeway_seconds: context.config.policy.clock_skew.as_secs(),
        };
        let findings = inspect(
            &token,
            &keys,
            &expected,
            u64::try_from(now.seconds()).unwrap_or(0),
        );
        let broken = findings
            .iter()
            .filter(|finding| finding.outcome.is_err())
            .count();
        if json {
            let findings: Vec<Value> = findings.iter().map(document).collect();
            output::json(&json!({ "valid": broken == 0, "findings": findings }))?;
        } else {
            let fields: Vec<_> = findings.iter().map(shown).collect();
            output::rows(&fields)?;
            output::line(&verdict(broken, any_audience))?;
        }
        if broken == 0 {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }
}

fn shown(finding: &Finding) -> [String; 3] {
    let (mark, text) = match &finding.outcome {
        Ok(text) => (output::RIGHT, text),
        Err(text) => (output::WRONG, text),
    };
    [mark.to_owned(), finding.subject.to_owned(), text.clone()]
}

fn document(finding: &Finding) -> Value {
    let (Ok(detail) | Err(detail)) = &finding.outcome;
    json!({ "subject": finding.subject, "valid": finding.outcome.is_ok(), "detail": detail })
}

fn verdict(broken: usize, any_audience: bool) -> String {
    match (broken, any_audience) {
        (0, false) => "valid".to_owned(),
        (0, true) => "valid for the audience it names; --audience URI checks for one".to_owned(),
        (1, _) => "not valid: 1 rule is broken".to_owned(),
        (broken, _) => format!("not valid: {broken} rules are broken"),
    }
}

fn read_input() -> Result<String, Failure> {
    let mut input = String::new();
    let read = std::io::stdin()
        .take(LONGEST_INPUT + 1)
        .read_to_string(&mut input);
    match read {
        Ok(length) if length as u64 > LONGEST_INPUT => Err(Failure::Message(format!(
            "standard input is longer than {LONGEST_INPUT} bytes; give it one token"
        ))),
        Ok(_) => Ok(input),
        Err(error) => Err(Failure::Message(format!(
            "standard input cannot be read; give it one token: {error}"
        ))),
    }
}

/// The token itself, from whatever holds it.
///
/// # Security
/// The input may be hostile; what is shown of it is escaped on printing.
fn token_of(input: &str) -> Result<String, Failure> {
    let input = input.trim();
    if input.is_empty() {
        return Err(Failure::message(
            "there is no token on standard input; pipe a JWT or the answer of the token endpoint to it",
        ));
    }
    if !input.starts_with('{') {
        return Ok(input.to_owned());
    }
    let answer: Value = serde_json::from_str(input).map_err(|error| {
        Failure::Message(format!(
            "the input is neither a JWT nor a JSON object: {error}"
        ))
    })?;
    let member = |name: &str| answer.get(name).and_then(Value::as_str);
    if let Some(error) = member("error") {
        let description = member("error_description").unwrap_or("no description");
        return Err(Failure::Message(format!(
            "the token endpoint refused, so that there is no token to verify: {error} ({description})"
        )));
    }
    member("access_token").map(str::to_owned).ok_or_else(|| {
        Failure::message("the input is a JSON object without an access_token; give a JWT or the answer of the token endpoint")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_bare_and_in_the_answer_that_brought_it() {
        assert_eq!(token_of(" a.b.c\n").unwrap(), "a.b.c");
        let answer = r#"{"access_token": "a.b.c", "token_type": "Bearer"}"#;
        assert_eq!(token_of(answer).unwrap(), "a.b.c");
    }

    #[test]
    fn what_holds_no_token_is_told_apart() {
        let told = |input: &str| token_of(input).unwrap_err().to_string();
        let refusal = r#"{"error": "invalid_client", "error_description": "no such client"}"#;
        assert!(told(refusal).ends_with("invalid_client (no such client)"));
        assert!(told("").contains("standard input"));
        assert!(told("{}").contains("without an access_token"));
        assert!(told("{").contains("neither"));
    }
}
