//! Passkeys (Web Authentication): discoverable credentials that verify their users.
//!
//! The state of a ceremony goes to the browser and back, sealed; its challenge is taken once, on
//! whatever node, within five minutes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;
use webauthn_rs::prelude::{
    CredentialID, DiscoverableAuthentication, Passkey as Credential, PasskeyRegistration,
    PublicKeyCredential, RegisterPublicKeyCredential, Webauthn, WebauthnBuilder, WebauthnError,
};

use super::{FactorRefused, SecondFactors};
use crate::{
    clock::Timestamp,
    domain::{
        assertion::AssertionId,
        change::Cause,
        factor::{FactorChange, Passkey, PasskeyId, method},
        id::UserId,
        user::User,
    },
};

/// How long a ceremony may take.
const LONGEST: Duration = Duration::from_mins(5);

/// The longest answer of an authenticator that is read, in bytes.
const LONGEST_ANSWER: usize = 16 * 1024;

/// The longest name of a passkey, in characters.
const LONGEST_NAME: usize = 60;

/// How many passkeys a user has at most.
const MOST: usize = 20;

/// A ceremony under way, as the browser keeps it: for its eyes alone, sealed.
#[derive(Clone, Deserialize, Serialize)]
pub struct Ceremony<T> {
    /// When it began, in milliseconds since 1970.
    at: i64,
    state: T,
}

/// One that adds a passkey.
pub type Registration = Ceremony<PasskeyRegistration>;

/// One that signs in.
pub type Authentication = Ceremony<DiscoverableAuthentication>;

/// What makes and verifies ceremonies for this issuer; none for one whose host is an address, at which
/// browsers have no passkeys.
pub fn relying_party(issuer: &str, name: &str) -> Option<Webauthn> {
    let url = Url::parse(issuer).ok()?;
    let host = url.domain()?.to_owned();
    let origin = Url::parse(&url.origin().ascii_serialization()).ok()?;
    let builder = WebauthnBuilder::new(&host, &origin).ok()?;
    builder.rp_name(name).timeout(LONGEST).build().ok()
}

impl SecondFactors {
    /// Begins to add a passkey: what the browser is asked, and what it keeps.
    pub fn begin_registration(
        &self,
        user: &User,
        known: &[Passkey],
    ) -> Result<(Value, Registration), FactorRefused> {
        let name = user.username.as_str();
        let known = known
            .iter()
            .map(|passkey| CredentialID::from(passkey.id.as_bytes().to_vec()));
        let (asked, state) = self.relying_party()?.start_passkey_registration(
            user.id.uuid(),
            name,
            name,
            Some(known.collect()),
        )?;
        let mut asked =
            serde_json::to_value(asked.public_key).map_err(WebauthnError::ParseJSONFailure)?;
        // The user signs in with it without giving a name.
        if let Some(selection) = asked
            .get_mut("authenticatorSelection")
            .and_then(Value::as_object_mut)
        {
            selection.insert("residentKey".to_owned(), "required".into());
            selection.insert("requireResidentKey".to_owned(), true.into());
        }
        Ok((asked, self.begun(state)))
    }

    /// Adds the passkey that an authenticator has made; if `is_first`, for a user who has no second
    /// factor, or not at all. With the methods that making it proves.
    ///
    /// # Security
    /// `answer` and `name` come from whoever sends the request. What makes a passkey here has verified
    /// its user, as what signs in with one has.
    pub async fn finish_registration(
        &self,
        user: &User,
        ceremony: &Registration,
        (answer, name): (&str, &str),
        is_first: bool,
        cause: &Cause,
    ) -> Result<Vec<String>, FactorRefused> {
        let known = self.of(user.id).await?.passkeys;
        let answer: RegisterPublicKeyCredential = read(answer)?;
        let now = self.clock.now();
        let credential = self
            .relying_party()?
            .finish_passkey_registration(&answer, &ceremony.state)
            .map_err(|_| FactorRefused::Wrong)?;
        let id = PasskeyId::from_bytes(credential.cred_id()).ok_or(FactorRefused::Wrong)?;
        if known.iter().any(|passkey| passkey.id == id) {
            return Err(FactorRefused::Again);
        }
        if known.len() >= MOST {
            return Err(FactorRefused::Conflict);
        }
        self.take(ceremony.at, &answer.response.client_data_json, now)
            .await?;
        let name: String = name
            .trim()
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST_NAME)
            .collect();
        let kept = serde_json::to_value(&credential).map_err(WebauthnError::ParseJSONFailure)?;
        let is_shared = kept.pointer("/cred/backup_eligible") != Some(&Value::Bool(false));
        let passkey = Passkey {
            id,
            subject: user.id,
            name: if name.is_empty() {
                "Passkey".to_owned()
            } else {
                name
            },
            credential: kept.to_string(),
            counter: 0,
            created_at: now,
            last_used_at: None,
        };
        let adding = FactorChange::AddPasskey(Box::new(passkey));
        self.change(user, adding, is_first, cause).await?;
        Ok(methods(is_shared))
    }

    /// Begins to sign in with a passkey: what the browser is asked, and what it keeps. Any passkey will
    /// do, or one of these.
    pub fn begin_authentication(
        &self,
        of: &[Passkey],
    ) -> Result<(Value, Authentication), FactorRefused> {
        let (asked, state) = self.relying_party()?.start_discoverable_authentication()?;
        let mut asked =
            serde_json::to_value(asked.public_key).map_err(WebauthnError::ParseJSONFailure)?;
        let allowed = of.iter().map(
            |passkey| serde_json::json!({ "type": "public-key", "id": passkey.id.to_string() }),
        );
        if let Some(asked) = asked.as_object_mut() {
            asked.insert("allowCredentials".to_owned(), allowed.collect());
        }
        Ok((asked, self.begun(state)))
    }

    /// Takes the answer of an authenticator: whose passkey it is, and the methods that it proves.
    ///
    /// # Security
    /// `answer` comes from whoever sends the request.
    pub async fn finish_authentication(
        &self,
        ceremony: &Authentication,
        answer: &str,
    ) -> Result<(UserId, Vec<String>), FactorRefused> {
        let answer: PublicKeyCredential = read(answer)?;
        let now = self.clock.now();
        let id = PasskeyId::from_bytes(answer.get_credential_id()).ok_or(FactorRefused::Wrong)?;
        let stored = self.answer(self.store.passkey(&id)).await?;
        let stored = stored.ok_or(FactorRefused::Wrong)?;
        let whose = answer.get_user_unique_id();
        if whose.is_some_and(|whose| whose != stored.subject.uuid().as_bytes()) {
            return Err(FactorRefused::Wrong);
        }
        let mut credential: Credential =
            serde_json::from_str(&stored.credential).map_err(WebauthnError::ParseJSONFailure)?;
        let result = self
            .relying_party()?
            .finish_discoverable_authentication_v2(&answer, ceremony.state.clone(), &credential)
            .map_err(|_| FactorRefused::Wrong)?;
        if !result.user_verified() {
            return Err(FactorRefused::Wrong);
        }
        self.take(ceremony.at, &answer.response.client_data_json, now)
            .await?;
        let is_shared = result.backup_eligible();
        credential.update_credential(&result);
        let used = Passkey {
            counter: result.counter().into(),
            credential: serde_json::to_string(&credential)
                .map_err(WebauthnError::ParseJSONFailure)?,
            ..stored
        };
        // Web Authentication §7.2, step 22: one that does not go on is a sign of a copy.
        if !self.answer(self.store.note_passkey(&used, now)).await? {
            tracing::warn!(user = %used.subject, "a passkey has signed with a count that was there before");
            return Err(FactorRefused::Wrong);
        }
        Ok((used.subject, methods(is_shared)))
    }

    /// Whether users can have passkeys here.
    pub fn has_passkeys(&self) -> bool {
        self.webauthn.is_some()
    }

    fn relying_party(&self) -> Result<&Webauthn, FactorRefused> {
        self.webauthn.as_ref().ok_or(FactorRefused::Conflict)
    }

    fn begun<T>(&self, state: T) -> Ceremony<T> {
        Ceremony {
            at: self.clock.now().millis(),
            state,
        }
    }

    /// Takes a challenge, once.
    async fn take(&self, at: i64, data: &[u8], now: Timestamp) -> Result<(), FactorRefused> {
        let at = Timestamp::from_millis(at);
        if now.since(at) >= LONGEST {
            return Err(FactorRefused::Wrong);
        }
        let id = AssertionId::of_ceremony(&challenge_of(data));
        let taking = self.store.first_use(&id, at.plus(LONGEST), now);
        if self.answer(taking).await? {
            Ok(())
        } else {
            Err(FactorRefused::Wrong)
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &str) -> Result<T, FactorRefused> {
    if answer.len() > LONGEST_ANSWER {
        return Err(FactorRefused::Wrong);
    }
    serde_json::from_str(answer).map_err(|_| FactorRefused::Wrong)
}

/// What a passkey proves that has verified its user, and that its user's devices may share.
fn methods(is_shared: bool) -> Vec<String> {
    let key = if is_shared {
        method::SOFTWARE_KEY
    } else {
        method::HARDWARE_KEY
    };
    super::names(&[key, method::USER, method::MULTIPLE])
}

/// The challenge that an authenticator has signed, which the ceremony has found to be the one that was
/// asked.
fn challenge_of(client_data: &[u8]) -> String {
    let data: Option<Value> = serde_json::from_slice(client_data).ok();
    let challenge = data
        .as_ref()
        .and_then(|data| data.get("challenge")?.as_str());
    challenge.unwrap_or_default().to_owned()
}
