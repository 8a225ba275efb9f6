//! Families: which ones there are, what has become of each, and how an operator ends one.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    AdminError, FieldError, document,
    ending::{Ending, Trail},
    page::{Page, PageRequest},
    story::{self, Told},
};
use crate::{
    clock::{AgreedClock, Timestamp},
    domain::{
        change::{Cause, Change},
        family::{EndReason, Family, FamilyQuery, FamilyState, Refusal, Standing},
        id::{ClientId, FamilyId, UserId},
        resource::ResourceUri,
        user::Username,
    },
    keys::lifecycle::Policy,
    store::{Store, StoreError},
};

/// How many families are looked at for one part of a list: where few are in the state that is asked
/// for, a part may have fewer items than its limit.
const MOST_LOOKED_AT: usize = 2000;

/// How many of them are read at a time.
const LOOKED_AT_ONCE: u32 = 200;

/// The parameters of a request for families, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct FamilyFilter<'a> {
    /// The id of a user.
    pub subject: Option<&'a str>,
    /// The id of a client.
    pub client_id: Option<&'a str>,
    /// A state.
    pub state: Option<&'a str>,
}

impl FamilyFilter<'_> {
    /// Reads the parameters.
    ///
    /// # Security
    /// All come from whoever sends the request.
    fn read(self, request: &PageRequest) -> Result<(FamilyQuery, Option<FamilyState>), AdminError> {
        fn read<T, E>(
            text: Option<&str>,
            parse: impl Fn(&str) -> Result<T, E>,
            problem: (&str, &str),
            errors: &mut Vec<FieldError>,
        ) -> Option<T> {
            let read = text.map(parse)?;
            read.map_err(|_| errors.push(FieldError::new(problem.0, problem.1)))
                .ok()
        }
        let mut errors = Vec::new();
        let query = FamilyQuery {
            subject: read(
                self.subject,
                UserId::parse,
                ("/subject", "is not the id of a user"),
                &mut errors,
            ),
            client_id: read(
                self.client_id,
                ClientId::parse,
                ("/client_id", "is no client id"),
                &mut errors,
            ),
            after: read(
                request.after(),
                FamilyId::parse,
                ("/cursor", "is no next_cursor of this list"),
                &mut errors,
            ),
            living_at: None,
            limit: u32::try_from(request.limit())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
        };
        let state = read(
            self.state,
            str::parse,
            ("/state", "must be active, ended or suspended"),
            &mut errors,
        );
        if errors.is_empty() {
            Ok((query, state))
        } else {
            Err(AdminError::Invalid(errors))
        }
    }
}

/// Why a family is to be ended, as an operator writes it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EndRequest {
    /// Why; kept in the audit trail.
    #[schema(max_length = 500)]
    reason: Option<String>,
}

impl EndRequest {
    /// The longest reason, in bytes.
    const LONGEST_REASON: usize = 500;

    /// Reads the document of a request: the reason.
    pub fn read(members: Map<String, Value>) -> Result<Option<String>, AdminError> {
        let (request, mut errors): (Self, _) = document::read(members);
        let is_too_long = |reason: &String| reason.len() > Self::LONGEST_REASON;
        if request.reason.as_ref().is_some_and(is_too_long) {
            let detail = format!("must be {} bytes at most", Self::LONGEST_REASON);
            errors.push(FieldError::new("/reason", detail));
        }
        // The database takes no NUL in texts.
        if request
            .reason
            .as_deref()
            .is_some_and(|reason| reason.contains('\0'))
        {
            errors.push(FieldError::new("/reason", "must be without NUL"));
        }
        if errors.is_empty() {
            Ok(request.reason)
        } else {
            Err(AdminError::Invalid(errors))
        }
    }
}

/// A family as operators see it.
#[derive(Clone, Debug)]
pub struct FamilyView {
    /// The family.
    pub family: Family,
    /// Its client and user.
    pub standing: Standing,
    /// What it is good for.
    pub state: FamilyState,
    /// How it has ended, or why it rests.
    pub ending: Option<Ending>,
}

impl FamilyView {
    /// Everything about the family but its story, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        let Self {
            family,
            standing,
            state,
            ending,
        } = self;
        let grant = &family.grant;
        json!({
            "id": family.id.to_string(),
            "client_id": grant.client_id.as_str(),
            "subject": grant.subject.to_string(),
            "username": standing.user.as_ref().map(|user| &user.username),
            "state": state.as_str(),
            "scope": grant.scope.to_string(),
            "resources": grant.resources.iter().map(ResourceUri::as_str).collect::<Vec<_>>(),
            "auth_time": grant.auth_time.seconds(),
            "amr": grant.amr,
            "created_at": family.created_at.seconds(),
            "refreshed_at": (family.counter > 0).then_some(family.rotated_at.seconds()),
            "refreshes": family.counter,
            "idle_expires_at": family.idle_expires_at.seconds(),
            "expires_at": family.expires_at.seconds(),
            "ended_at": ending.as_ref().and_then(|ending| ending.at).map(Timestamp::seconds),
            "end_reason": ending.as_ref().map(Ending::reason),
            "first": family.first.document(),
            "last": family.last.document(),
        })
    }
}

/// A family with its story.
#[derive(Clone, Debug)]
pub struct FamilyStory {
    /// The family.
    pub view: FamilyView,
    /// What happened, in order.
    pub story: Vec<Told>,
}

impl FamilyStory {
    /// Everything about the family, as the admin interfaces show it.
    pub fn document(&self) -> Value {
        let mut document = self.view.document();
        if let Some(members) = document.as_object_mut() {
            let story = self.story.iter().map(Told::document).collect();
            members.insert("story".to_owned(), story);
        }
        document
    }
}

/// The use cases about families.
#[derive(Clone)]
pub struct FamilyAdmin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: AgreedClock,
    /// How long tokens live, and are accepted somewhere after that.
    pub policy: Policy,
}

impl FamilyAdmin {
    /// A part of the list of families, the latest first.
    pub async fn page(
        &self,
        filter: FamilyFilter<'_>,
        request: &PageRequest,
    ) -> Result<Page<FamilyView>, AdminError> {
        let (mut query, wanted) = filter.read(request)?;
        let now = self.clock.now();
        // Of a user there are not so many that have ended, and are passed over by the database.
        let is_of_user = query.subject.is_some();
        query.living_at = (is_of_user && wanted == Some(FamilyState::Active)).then_some(now);
        let mut trail = Trail::new(&*self.store, now).await?;
        let mut views = Vec::new();
        let mut looked_at = 0;
        loop {
            let families = self.store.families(&query).await?;
            let is_last = u32::try_from(families.len()).is_ok_and(|count| count < query.limit);
            let mut left = families.len();
            for (family, standing) in families {
                left -= 1;
                query.after = Some(family.id);
                let state = trail.state(&family, &standing);
                if wanted.is_none_or(|wanted| wanted == state) {
                    views.push(trail.view(family, standing).await?);
                }
                looked_at += 1;
                if views.len() == request.limit() {
                    break;
                }
            }
            let is_at_end = is_last && left == 0;
            if is_at_end || views.len() == request.limit() || looked_at >= MOST_LOOKED_AT {
                let last = query.after.filter(|_| !is_at_end);
                let last = last.map(|id| id.to_string());
                return Ok(request.found(views, last.as_deref()));
            }
            // Mostly the latest are what is wanted; where they are not, it may take many.
            query.limit = query.limit.max(LOOKED_AT_ONCE);
        }
    }

    /// A family and its story.
    pub async fn show(&self, id: FamilyId) -> Result<FamilyStory, AdminError> {
        let found = self.store.family(id).await?;
        let (family, standing) = found.ok_or(AdminError::NotFound("family"))?;
        let mut trail = Trail::new(&*self.store, self.clock.now()).await?;
        let view = trail.view(family, standing).await?;
        story::tell(view, &mut trail).await
    }

    /// The latest families of a user with their stories, the latest first.
    pub async fn stories(
        &self,
        subject: UserId,
        limit: u32,
    ) -> Result<Vec<FamilyStory>, AdminError> {
        let query = FamilyQuery {
            subject: Some(subject),
            limit,
            ..FamilyQuery::default()
        };
        let mut trail = Trail::new(&*self.store, self.clock.now()).await?;
        let mut stories = Vec::new();
        for (family, standing) in self.store.families(&query).await? {
            let view = trail.view(family, standing).await?;
            stories.push(story::tell(view, &mut trail).await?);
        }
        Ok(stories)
    }

    /// The user of a name or an id, if there is one, or families of it are left.
    pub async fn subject(&self, text: &str) -> Result<Option<UserId>, AdminError> {
        if let Ok(name) = Username::parse(text)
            && let Some(user) = self.store.user_by_name(name.key()).await?
        {
            return Ok(Some(user.id));
        }
        let Ok(id) = UserId::parse(text) else {
            return Ok(None);
        };
        if self.store.user(id).await?.is_some() {
            return Ok(Some(id));
        }
        let query = FamilyQuery {
            subject: Some(id),
            limit: 1,
            ..FamilyQuery::default()
        };
        let families = self.store.families(&query).await?;
        Ok((!families.is_empty()).then_some(id))
    }

    /// Ends a family. One that has ended stays as it has.
    pub async fn end(&self, id: FamilyId, cause: &Cause) -> Result<FamilyStory, AdminError> {
        let found = self.store.family(id).await?;
        let (family, standing) = found.ok_or(AdminError::NotFound("family"))?;
        let now = self.clock.now();
        // One that merely rests, or whose refresh tokens count no more as their key was taken out of
        // use, has access tokens that do.
        let is_over = family
            .ending(&standing, now)
            .is_some_and(|refusal| refusal != Refusal::ClientDisabled);
        if !is_over {
            let change = Change::EndFamily {
                family: id,
                reason: EndReason::RevokedByOperator,
                tokens_die_at: now.plus(self.policy.retention()),
            };
            match self.store.apply(&change, cause, now).await {
                // Somebody else was faster.
                Ok(_) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.show(id).await
    }
}
