//! Lists in parts: each part ends with a cursor, from which the next begins.
//!
//! A cursor is the key of the last item shown, so that items which come or go meanwhile neither
//! repeat others nor hide them.

use countersign_verifier::base64url;

use super::{AdminError, FieldError};

/// How many items a part has unless asked otherwise.
pub const USUAL: usize = 50;

/// How many it has at most.
pub const MOST: usize = 200;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    list: &'static str,
    limit: usize,
    after: Option<String>,
}

impl PageRequest {
    /// Reads the parameters `limit` and `cursor`. `list` tells apart the cursors of different lists.
    ///
    /// # Security
    /// Both come from whoever sends the request; a cursor is no secret and grants nothing.
    pub fn parse(
        list: &'static str,
        limit: Option<&str>,
        cursor: Option<&str>,
    ) -> Result<Self, AdminError> {
        let mut errors = Vec::new();
        let limit = limit.map_or(Some(USUAL), |text| {
            let number = text.parse().ok();
            number.filter(|number| (1..=MOST).contains(number))
        });
        if limit.is_none() {
            let detail = format!("must be a whole number from 1 to {MOST}");
            errors.push(FieldError::new("/limit", detail));
        }
        let after = cursor.map(|cursor| key_in(list, cursor));
        if after == Some(None) {
            let detail = "is no next_cursor of this list";
            errors.push(FieldError::new("/cursor", detail));
        }
        match limit {
            Some(limit) if errors.is_empty() => Ok(Self {
                list,
                limit,
                after: after.flatten(),
            }),
            _ => Err(AdminError::Invalid(errors)),
        }
    }

    /// How many items are asked for.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The key after which the part begins; none is the beginning of the list.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// The part, of all items, put into the order of their keys.
    pub(super) fn part_of<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        if let Some(after) = self.after() {
            items.retain(|item| *key(item) > *after);
        }
        items.sort_by_key(&key);
        self.first_of(items, key)
    }

    /// A part that was looked for until `last`, the key of the last item that was looked at; none is
    /// the end of the list.
    pub(super) fn found<T>(&self, items: Vec<T>, last: Option<&str>) -> Page<T> {
        Page {
            items,
            next_cursor: last.map(|key| cursor_of(self.list, key)),
        }
    }

    /// The part, of items that are in order and begin with the first that is asked for; of all the
    /// others, one more than [`Self::limit`] will do.
    pub(super) fn first_of<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let is_last = items.len() <= self.limit;
        items.truncate(self.limit);
        let last = items.last().filter(|_| !is_last);
        Page {
            next_cursor: last.map(|item| cursor_of(self.list, &key(item))),
            items,
        }
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next part begins; none after the last.
    pub next_cursor: Option<String>,
}

fn cursor_of(list: &str, key: &str) -> String {
    base64url::encode(format!("{list}:{key}").as_bytes())
}

fn key_in(list: &str, cursor: &str) -> Option<String> {
    let text = String::from_utf8(base64url::decode(cursor).ok()?).ok()?;
    let key = text.strip_prefix(list)?.strip_prefix(':')?;
    // The database takes no NUL in texts.
    (!key.contains('\0')).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(request: &PageRequest, items: &[&str]) -> (Vec<String>, Option<String>) {
        let items = items.iter().map(ToString::to_string).collect();
        let page = request.part_of(items, Clone::clone);
        (page.items, page.next_cursor)
    }

    #[test]
    fn parts_neither_repeat_nor_miss_what_stays() {
        let first = PageRequest::parse("list", Some("2"), None).unwrap();
        let (items, cursor) = keys(&first, &["d", "a", "c", "b"]);
        assert_eq!(items, ["a", "b"]);
        // `b` goes and `bb` comes.
        let second = PageRequest::parse("list", Some("2"), cursor.as_deref()).unwrap();
        let (items, cursor) = keys(&second, &["a", "bb", "c", "d"]);
        assert_eq!(items, ["bb", "c"]);
        let third = PageRequest::parse("list", None, cursor.as_deref()).unwrap();
        assert_eq!(keys(&third, &["d"]), (vec!["d".to_owned()], None));
    }

    #[test]
    fn what_is_no_limit_or_no_cursor_of_the_list_is_refused() {
        for limit in ["0", "201", "-1", "", "1.0", "ten", "99999999999999999999"] {
            assert!(
                PageRequest::parse("list", Some(limit), None).is_err(),
                "{limit}"
            );
        }
        for cursor in [
            "",
            "a",
            "!",
            &cursor_of("other", "a"),
            &cursor_of("list", "\0"),
        ] {
            assert!(
                PageRequest::parse("list", None, Some(cursor)).is_err(),
                "{cursor}"
            );
        }
    }
}
