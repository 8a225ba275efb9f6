//! What a handler gets: a call whose operator was admitted and whose body was read.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::Data,
};
use serde_json::{Map, Value, json};

use super::problem::{Kind, Problem};
use crate::{
    admin::{
        FieldError,
        client::ClientAdmin,
        document::{UNKNOWN, pointer_to},
        operator::{Authority, Operator},
        page::{Page, PageRequest},
    },
    domain::{
        change::{Cause, Origin},
        client::Revision,
    },
    http::{AdminServices, Services},
    oauth::form::Form,
};

/// What comes of a call.
pub(super) type Outcome = Result<HttpResponse, Problem>;

/// One call of an operator.
pub(super) struct Call {
    pub(super) services: Data<Services>,
    pub(super) operator: Operator,
    pub(super) origin: Origin,
    pub(super) request: HttpRequest,
    /// The members of the body; none where the call takes no body.
    pub(super) body: Map<String, Value>,
}

impl Call {
    /// The use cases.
    pub(super) fn admin(&self) -> &AdminServices {
        &self.services.admin
    }

    /// The use cases about clients, no further than the operator's own authority.
    pub(super) fn clients(&self) -> ClientAdmin {
        let authority = Authority::Scopes(self.operator.scope.clone());
        self.admin().clients.with_authority(authority)
    }

    /// Who asks, from where, and why if that was told.
    pub(super) fn cause(&self, reason: Option<String>) -> Cause {
        Cause::of_request(&self.operator.client_id, &self.origin, reason)
    }

    /// A part of the path that is the id of some `kind`: one that nothing can have is not found.
    pub(super) fn id<T, E>(
        &self,
        name: &str,
        kind: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Problem> {
        let text = self.request.match_info().get(name).unwrap_or_default();
        parse(text).map_err(|_| Problem::not_found(kind))
    }

    /// The revision that whoever sends a patch has seen, if that is told; taken out of the body.
    pub(super) fn take_revision(&mut self) -> Result<Option<Revision>, Problem> {
        let Some(revision) = self.body.remove("revision") else {
            return Ok(None);
        };
        revision.as_i64().map(Some).ok_or_else(|| {
            let error = FieldError::new("/revision", "must be a whole number");
            Problem::invalid(vec![error])
        })
    }

    /// Which part of a list is asked for, and the query, which has these `filters` at most: by one that
    /// is misspelt nothing would be left out, and whoever ends or removes what is listed would not know.
    pub(super) fn page(
        &self,
        list: &'static str,
        filters: &[&str],
    ) -> Result<(PageRequest, Form), Problem> {
        let query = Form::parse(self.request.query_string().as_bytes())
            .map_err(|_| Problem::new(Kind::Malformed, "the query is not well-formed"))?;
        let unknown = query
            .names()
            .filter(|name| !filters.contains(name) && !["limit", "cursor"].contains(name));
        let errors: Vec<FieldError> = unknown
            .map(|name| FieldError::new(pointer_to(name), UNKNOWN))
            .collect();
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        let (limit, cursor) = (one(&query, "limit")?, one(&query, "cursor")?);
        Ok((PageRequest::parse(list, limit, cursor)?, query))
    }
}

/// The value of a parameter that is there at most once.
pub(super) fn one<'a>(query: &'a Form, name: &'static str) -> Result<Option<&'a str>, Problem> {
    query.one(name).map_err(|_| {
        Problem::new(
            Kind::Malformed,
            format!("the parameter {name} is there twice"),
        )
    })
}

/// An answer with a document.
pub(super) fn answer(document: &Value) -> HttpResponse {
    json_answer(StatusCode::OK).body(document.to_string())
}

/// The answer after something was made.
pub(super) fn created(location: &str, document: &Value) -> HttpResponse {
    json_answer(StatusCode::CREATED)
        .insert_header((header::LOCATION, location))
        .body(document.to_string())
}

/// The answer after something was removed.
pub(super) fn removed() -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish()
}

/// A part of a list.
pub(super) fn listed<T>(page: &Page<T>, document: impl Fn(&T) -> Value) -> HttpResponse {
    let items: Vec<Value> = page.items.iter().map(document).collect();
    answer(&json!({ "items": items, "next_cursor": page.next_cursor }))
}

fn json_answer(status: StatusCode) -> actix_web::HttpResponseBuilder {
    let mut answer = HttpResponse::build(status);
    answer
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_TYPE, "application/json"));
    answer
}
