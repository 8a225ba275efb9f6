//! JSON objects from people we do not trust.
//!
//! Two habits of ordinary parsers are dangerous in tokens. They keep one of two members of the
//! same name, so that two readers can see different claims; and typed readers take a member of
//! the wrong type for an absent one, so that `"exp": "never"` skips the check (CVE-2026-25537).
//! Here the first is a [`JsonError`] at every level and the second a [`MemberError`].

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep objects and arrays may nest; the outermost object counts as one.
pub const MAX_DEPTH: u8 = 16;

/// The first number of seconds out of range: below it every JSON number is exact.
const NUMERIC_DATE_END: u64 = 1 << 53;

/// Parses one JSON object and nothing after it.
///
/// # Security
/// The caller limits the length of `bytes`; the depth is limited here.
pub fn parse_object(bytes: &[u8]) -> Result<Object, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
    let refusal = Cell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict {
        depth: 0,
        refusal: &refusal,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value))
    .map_err(|_| refusal.take().unwrap_or(JsonError::Syntax))?;
    match value {
        Value::Object(members) => Ok(Object(members)),
        _ => Err(JsonError::NotAnObject),
    }
}

/// A JSON object without duplicate members, read by name and type.
///
/// Each reader answers `None` only when the member is absent: `null` is a wrong type.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(Map<String, Value>);

impl Object {
    /// Reads a string.
    pub fn string(&self, name: &'static str) -> Result<Option<&str>, MemberError> {
        self.member(name, "a string", Value::as_str)
    }

    /// Reads a string that must be there and not be empty.
    pub fn required_string(&self, name: &'static str) -> Result<&str, MemberError> {
        match self.string(name)? {
            None => Err(MemberError::Missing { name }),
            Some("") => Err(MemberError::Empty { name }),
            Some(text) => Ok(text),
        }
    }

    /// Reads an array of strings.
    pub fn strings(&self, name: &'static str) -> Result<Option<Vec<&str>>, MemberError> {
        self.member(name, "an array of strings", as_strings)
    }

    /// Reads an array.
    pub fn array(&self, name: &'static str) -> Result<Option<&[Value]>, MemberError> {
        self.member(name, "an array", |value| {
            value.as_array().map(Vec::as_slice)
        })
    }

    /// Reads a `NumericDate`: whole seconds since 1970, a fraction being cut off.
    ///
    /// [RFC 7519 §2](https://www.rfc-editor.org/rfc/rfc7519#section-2) allows fractions. Negative
    /// numbers and those from 2^53 on are out of range.
    pub fn numeric_date(&self, name: &'static str) -> Result<Option<u64>, MemberError> {
        self.member(name, "a number", Value::as_number)?
            .map(|number| whole_seconds(number).ok_or(MemberError::OutOfRange { name }))
            .transpose()
    }

    /// Reads a `NumericDate` that must be there.
    pub fn required_numeric_date(&self, name: &'static str) -> Result<u64, MemberError> {
        self.numeric_date(name)?
            .ok_or(MemberError::Missing { name })
    }

    /// Reads a member by `read`, which answers `None` for a value that is not `expected`.
    pub fn member<'a, T>(
        &'a self,
        name: &'static str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, MemberError> {
        self.value(name)
            .map(|value| read(value).ok_or(MemberError::WrongType { name, expected }))
            .transpose()
    }

    /// All members.
    pub fn into_members(self) -> Map<String, Value> {
        self.0
    }

    /// The untyped value, to show it to a person or to see whether it is there.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

/// The elements of an array that holds only strings.
pub fn as_strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn whole_seconds(number: &Number) -> Option<u64> {
    number
        .as_u64()
        .or_else(|| number.as_f64().and_then(floor))
        .filter(|s| *s < NUMERIC_DATE_END)
}

fn floor(seconds: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "non-negative and below 2^53, where every whole number is exact"
    )]
    (0.0..NUMERIC_DATE_END as f64)
        .contains(&seconds)
        .then_some(seconds as u64)
}

/// Deserializes a value at `depth`, noting in `refusal` why it stopped where JSON itself was fine.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: u8,
    refusal: &'a Cell<Option<JsonError>>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(self.refuse(JsonError::TooDeep));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }

    fn refuse<E: serde::de::Error>(self, why: JsonError) -> E {
        self.refusal.set(Some(why));
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(inner)? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            // Compared after unescaping: `"a"` and `"\u0061"` are the same name.
            if object
                .insert(name, members.next_value_seed(inner)?)
                .is_some()
            {
                return Err(self.refuse(JsonError::DuplicateMember));
            }
        }
        Ok(Value::Object(object))
    }
}

/// Why bytes are not an acceptable JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Two members of one object have the same name.
    #[error("the JSON repeats a member name")]
    DuplicateMember,
    /// The JSON is some other value.
    #[error("the JSON is not an object")]
    NotAnObject,
    /// The bytes are not UTF-8.
    #[error("the JSON is not UTF-8")]
    NotUtf8,
    /// Not JSON, a number no double can hold, or something after the object.
    #[error("the JSON is malformed")]
    Syntax,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the JSON is nested too deeply")]
    TooDeep,
}

/// Why a member of an [`Object`] is not what its reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// A member that must say something is empty.
    #[error("`{name}` is empty")]
    Empty {
        /// The member's name.
        name: &'static str,
    },
    /// A required member is absent.
    #[error("`{name}` is missing")]
    Missing {
        /// The member's name.
        name: &'static str,
    },
    /// A number is negative or too large for a time.
    #[error("`{name}` is not a time in seconds since 1970")]
    OutOfRange {
        /// The member's name.
        name: &'static str,
    },
    /// A member has another JSON type, for example `null`.
    #[error("`{name}` is not {expected}")]
    WrongType {
        /// The member's name.
        name: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
}
