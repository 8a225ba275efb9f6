//! Reading the documents that operators write: everything that is wrong is told at once.

use std::collections::HashSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::FieldError;

/// What is said of a member that the document does not have, and of a parameter that a call does not have.
pub const UNKNOWN: &str = "is not known here";

/// Reads a document member by member.
///
/// A member that cannot be read is told and left out, so that the others are looked at, too: what is
/// returned is only to be used when nothing is wrong.
pub(super) fn read<T: DeserializeOwned + Default>(
    mut members: Map<String, Value>,
) -> (T, Vec<FieldError>) {
    let mut errors = Vec::new();
    loop {
        let result = serde_path_to_error::deserialize(Value::Object(members.clone()));
        let error = match result {
            Ok(document) => return (document, errors),
            Err(error) => error,
        };
        let path: Vec<String> = error.path().iter().map(segment).collect();
        let pointer: String = path.iter().map(|segment| pointer_to(segment)).collect();
        errors.push(FieldError::new(pointer, detail(&error.inner().to_string())));
        let member = path.first().and_then(|segment| members.remove(segment));
        if member.is_none() {
            return (T::default(), errors);
        }
    }
}

fn segment(segment: &Segment) -> String {
    match segment {
        Segment::Seq { index } => index.to_string(),
        other => other.to_string(),
    }
}

/// Those members that are not known.
fn unknown<T: DeserializeOwned + Default>(
    members: Map<String, Value>,
) -> impl Iterator<Item = FieldError> {
    let (_, errors) = read::<T>(members);
    errors.into_iter().filter(|error| error.detail == UNKNOWN)
}

/// A merge patch without what it only sends back of the document that was shown, of members that
/// nobody can write: whoever sends the document back with something changed changes only that.
pub(super) fn without_shown(patch: &Value, shown: &Value, shown_only: &[&str]) -> Value {
    let mut patch = patch.clone();
    if let Value::Object(members) = &mut patch {
        members.retain(|name, value| {
            !shown_only.contains(&name.as_str()) || shown.get(name) != Some(value)
        });
    }
    patch
}

/// JSON Merge Patch (RFC 7396 §2): null removes, an object merges, anything else replaces.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Reads a document into which a patch was merged, as far as it can be read, and tells what cannot.
pub(super) fn read_patched<T: DeserializeOwned + Default>(
    document: Value,
    patch: &Value,
) -> (T, Vec<FieldError>) {
    let Value::Object(members) = document else {
        let error = FieldError::new("", "must be an object");
        return (T::default(), vec![error]);
    };
    // Taking away what there never is changes nothing, and is a mistake all the same.
    let nulls = patch.as_object().into_iter().flatten();
    let nulls: Map<String, Value> = nulls
        .filter(|(_, value)| value.is_null())
        .map(|(name, _)| (name.clone(), Value::Null))
        .collect();
    let unknown = unknown::<T>(nulls);
    let (document, mut errors) = read(members);
    errors.extend(unknown);
    (document, errors)
}

/// All that is wrong: what could not be read, and what is wrong with the rest.
///
/// A member that could not be read stands at its default: nothing more is to be said of it.
pub(super) fn all_wrong(mut unread: Vec<FieldError>, also: Vec<FieldError>) -> Vec<FieldError> {
    let told: HashSet<String> = unread
        .iter()
        .map(|error| member(error).to_owned())
        .collect();
    unread.extend(
        also.into_iter()
            .filter(|error| !told.contains(member(error))),
    );
    unread
}

/// The member of the document that an error's pointer leads into.
fn member(error: &FieldError) -> &str {
    error.pointer.split('/').nth(1).unwrap_or_default()
}

/// The JSON Pointer (RFC 6901 §3) to a member of the document; to one of a member, when appended.
pub fn pointer_to(member: &str) -> String {
    format!("/{}", member.replace('~', "~0").replace('/', "~1"))
}

/// What serde says, in words about JSON and without the value that was sent.
fn detail(message: &str) -> String {
    if message.starts_with("unknown field") {
        return UNKNOWN.to_owned();
    }
    if message.starts_with("missing field") {
        return "is missing".to_owned();
    }
    let expected = message
        .rsplit_once("expected ")
        .map_or("", |(_, text)| text);
    match expected {
        "a string" => "must be a string".to_owned(),
        "a boolean" => "must be true or false".to_owned(),
        "a map" => "must be an object".to_owned(),
        "a sequence" => "must be a list".to_owned(),
        "i64" | "u32" | "u64" => "must be a whole number in range".to_owned(),
        _ => "has the wrong type or is out of range".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Document {
        name: String,
        list: Vec<String>,
        count: Option<u32>,
        is: bool,
    }

    fn errors(document: &Value) -> Vec<(String, String)> {
        let members = document.as_object().unwrap().clone();
        let (document, errors): (Document, _) = read(members);
        assert!(!errors.is_empty() || document.name == "x");
        let _ = (document.list, document.count, document.is);
        errors
            .into_iter()
            .map(|error| (error.pointer, error.detail))
            .collect()
    }

    #[test]
    fn everything_wrong_is_told_with_its_pointer() {
        assert_eq!(errors(&json!({ "name": "x", "count": 7 })), []);
        let mut found = errors(&json!({
            "name": 1, "list": ["a", 2], "count": -1, "is": "yes", "a/b~c": null,
        }));
        found.sort();
        let expected = [
            ("/a~1b~0c", "is not known here"),
            ("/count", "must be a whole number in range"),
            ("/is", "must be true or false"),
            ("/list/1", "must be a string"),
            ("/name", "must be a string"),
        ];
        assert_eq!(
            found,
            expected.map(|(pointer, detail)| (pointer.to_owned(), detail.to_owned()))
        );
    }
}
