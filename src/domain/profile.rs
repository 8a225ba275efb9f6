//! What is told of users: the standard claims of `OpenID` Connect (Core §5.1).

use serde_json::{Map, Value};

/// What a claim may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A line of text.
    Text,
    /// A web address.
    Url,
    /// Yes or no.
    Flag,
    /// A date, a year, or a day of a year that is not told.
    Date,
    /// An e-mail address (RFC 5322 `addr-spec`).
    Email,
    /// A name of the time zone database.
    Zone,
    /// A language tag (RFC 5646); some write an underscore.
    Locale,
    /// A telephone number.
    Phone,
    /// An object of lines of text.
    Address,
}

/// A standard claim: its name, the scope that asks for it (Core §5.4), and what it may be. Those
/// without a kind are not part of a profile: they follow from the user.
const CLAIMS: [(&str, &str, Option<Kind>); 19] = [
    ("address", "address", Some(Kind::Address)),
    ("birthdate", "profile", Some(Kind::Date)),
    ("email", "email", Some(Kind::Email)),
    ("email_verified", "email", Some(Kind::Flag)),
    ("family_name", "profile", Some(Kind::Text)),
    ("gender", "profile", Some(Kind::Text)),
    ("given_name", "profile", Some(Kind::Text)),
    ("locale", "profile", Some(Kind::Locale)),
    ("middle_name", "profile", Some(Kind::Text)),
    ("name", "profile", Some(Kind::Text)),
    ("nickname", "profile", Some(Kind::Text)),
    ("phone_number", "phone", Some(Kind::Phone)),
    ("phone_number_verified", "phone", Some(Kind::Flag)),
    ("picture", "profile", Some(Kind::Url)),
    ("preferred_username", "profile", None),
    ("profile", "profile", Some(Kind::Url)),
    ("updated_at", "profile", None),
    ("website", "profile", Some(Kind::Url)),
    ("zoneinfo", "profile", Some(Kind::Zone)),
];

/// The members of an address (Core §5.1.1).
const ADDRESS: [&str; 6] = [
    "country",
    "formatted",
    "locality",
    "postal_code",
    "region",
    "street_address",
];

/// The longest line of text, in characters.
const LONGEST_TEXT: usize = 200;
/// The longest address as a whole, in characters.
const LONGEST_ADDRESS: usize = 1000;
/// The longest web address, in bytes.
const LONGEST_URL: usize = 2000;
/// The longest e-mail address, in bytes (RFC 5321 §4.5.3.1.3).
const LONGEST_EMAIL: usize = 254;
/// The longest name of a time zone, a language or a telephone, in bytes.
const LONGEST_NAME: usize = 64;

/// The names of all standard claims.
pub fn names() -> impl Iterator<Item = &'static str> {
    CLAIMS.iter().map(|(name, ..)| *name)
}

/// The scope that asks for a standard claim; none for whatever is none.
pub fn scope_of(claim: &str) -> Option<&'static str> {
    let mut claims = CLAIMS.iter();
    let (_, scope, _) = claims.find(|(name, ..)| *name == claim)?;
    Some(scope)
}

/// What is told of a user, as an operator has written it: standard claims, each of its type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(Map<String, Value>);

impl Profile {
    /// Reads claims.
    ///
    /// # Errors
    /// Everything that is wrong, each with the path of names that leads to it.
    pub fn parse(members: Map<String, Value>) -> Result<Self, Vec<(Vec<String>, &'static str)>> {
        let wrong: Vec<_> = members
            .iter()
            .flat_map(|(name, value)| problems(name, value))
            .collect();
        if wrong.is_empty() {
            Ok(Self(members))
        } else {
            Err(wrong)
        }
    }

    /// Takes on what was stored, perhaps by a later version that knows more claims.
    pub fn from_stored(members: Map<String, Value>) -> Self {
        Self(members)
    }

    /// The claims.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }
}

fn problems(name: &str, value: &Value) -> Vec<(Vec<String>, &'static str)> {
    let one = |detail| vec![(vec![name.to_owned()], detail)];
    let kind = CLAIMS.iter().find(|(other, ..)| *other == name);
    let Some((_, _, Some(kind))) = kind else {
        return one("is none of the standard claims that can be set");
    };
    let text = match (kind, value) {
        (Kind::Flag, Value::Bool(_)) => return Vec::new(),
        (Kind::Flag, _) => return one("must be true or false"),
        (Kind::Address, Value::Object(address)) => {
            return address
                .iter()
                .filter_map(|(part, value)| {
                    let path = vec![name.to_owned(), part.clone()];
                    address_problem(part, value).map(|detail| (path, detail))
                })
                .collect();
        }
        (Kind::Address, _) => return one("must be an object"),
        (_, Value::String(text)) => text.as_str(),
        _ => return one("must be a string"),
    };
    let problem = match kind {
        Kind::Url if !is_url(text) => {
            Some("must be a URL with https or http, of 2000 characters at most")
        }
        Kind::Date if !is_date(text) => Some("must be YYYY-MM-DD, 0000-MM-DD or YYYY"),
        Kind::Email if !is_email(text) => {
            Some("must be an e-mail address, of 254 characters at most")
        }
        Kind::Zone if !is_made_of(text, "/_+-") => Some("must be a time zone such as Europe/Paris"),
        Kind::Locale if !is_made_of(text, "-_") => Some("must be a language tag such as en-US"),
        Kind::Phone if !is_made_of(text, "+-. ();=") => {
            Some("must be a telephone number such as +1 (425) 555-1212")
        }
        Kind::Text if !is_text(text, LONGEST_TEXT) => Some(TEXT),
        _ => None,
    };
    problem.map(one).unwrap_or_default()
}

const TEXT: &str = "must be 1 to 200 characters without control characters";

fn address_problem(part: &str, value: &Value) -> Option<&'static str> {
    if !ADDRESS.contains(&part) {
        return Some("is no part of an address");
    }
    let Value::String(text) = value else {
        return Some("must be a string");
    };
    // These may have several lines (Core §5.1.1).
    let has_lines = matches!(part, "formatted" | "street_address");
    let longest = if has_lines {
        LONGEST_ADDRESS
    } else {
        LONGEST_TEXT
    };
    let lines = text.replace("\r\n", "\n");
    let fits = if has_lines {
        is_text(&lines.replace('\n', " "), longest)
    } else {
        is_text(text, longest)
    };
    (!fits).then_some(if has_lines {
        "must be 1 to 1000 characters without control characters but line breaks"
    } else {
        TEXT
    })
}

fn is_text(text: &str, longest: usize) -> bool {
    let length = text.chars().count();
    (1..=longest).contains(&length) && !text.chars().any(char::is_control)
}

/// Letters, digits and these.
fn is_made_of(text: &str, others: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || others.contains(it))
}

fn is_url(text: &str) -> bool {
    let url = url::Url::parse(text);
    text.len() <= LONGEST_URL
        && !text.chars().any(|it| it.is_control() || it.is_whitespace())
        && url.is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

fn is_email(text: &str) -> bool {
    let has_parts = text
        .rsplit_once('@')
        .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty());
    has_parts
        && text.len() <= LONGEST_EMAIL
        && !text.chars().any(|it| it.is_control() || it.is_whitespace())
}

fn is_date(text: &str) -> bool {
    let number = |text: &str, digits: usize| {
        let is_number = text.len() == digits && text.bytes().all(|it| it.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number)
    };
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next(), parts.next(), parts.next());
    if parts.next().is_some() {
        return false;
    }
    let year = year.and_then(|year| number(year, 4));
    match (year, month, day) {
        (Some(year), None, None) => year > 0,
        (Some(year), Some(month), Some(day)) => {
            let (month, day) = (number(month, 2), number(day, 2));
            let is_leap = year == 0 || year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                Some(2) => 28 + u16::from(is_leap),
                Some(4 | 6 | 9 | 11) => 30,
                Some(1..=12) => 31,
                _ => 0,
            };
            day.is_some_and(|day| (1..=last).contains(&day))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(profile: &Value) -> Vec<String> {
        match Profile::parse(profile.as_object().unwrap().clone()) {
            Ok(_) => Vec::new(),
            Err(wrong) => wrong.into_iter().map(|(path, _)| path.join("/")).collect(),
        }
    }

    #[test]
    fn every_standard_claim_is_taken_as_core_writes_it() {
        let profile = json!({
            "name": "Jane Doe",
            "given_name": "Jane",
            "family_name": "Doe",
            "middle_name": "Q.",
            "nickname": "JD",
            "profile": "https://example.com/jane",
            "picture": "http://example.com/janedoe/me.jpg",
            "website": "https://jane.example/?a=b",
            "gender": "female",
            "birthdate": "0000-10-31",
            "zoneinfo": "America/Los_Angeles",
            "locale": "en-US",
            "email": "jänedoe+x@example.com",
            "email_verified": false,
            "address": {
                "formatted": "1234 Hollywood Blvd.\r\nLos Angeles",
                "street_address": "1234 Hollywood Blvd.\nApt. 2",
                "locality": "Los Angeles",
                "region": "CA",
                "postal_code": "90210",
                "country": "US",
            },
            "phone_number": "+1 (604) 555-1234;ext=5678",
            "phone_number_verified": true,
        });
        assert_eq!(wrong(&profile), [""; 0]);
        // All but those that follow from the user.
        assert_eq!(profile.as_object().unwrap().len(), CLAIMS.len() - 2);
        assert!(CLAIMS.is_sorted_by_key(|(name, ..)| name));
        for (name, scope, _) in CLAIMS {
            assert_eq!(scope_of(name), Some(scope));
            assert!(names().any(|it| it == name));
        }
        for none in ["sub", "openid", "roles", "Name", ""] {
            assert_eq!(scope_of(none), None);
        }
    }

    #[test]
    fn what_is_of_another_type_or_too_long_is_refused() {
        let long = "x".repeat(201);
        for (name, value) in [
            ("name", json!(1)),
            ("name", json!("")),
            ("name", json!(long)),
            ("name", json!("a\nb")),
            ("name", Value::Null),
            ("email_verified", json!("true")),
            ("email", json!("jane")),
            ("email", json!("@example.com")),
            ("email", json!("jane doe@example.com")),
            ("email", json!(format!("{}@x", "a".repeat(254)))),
            ("picture", json!("javascript:alert(1)")),
            ("picture", json!("/me.jpg")),
            ("website", json!(format!("https://a/{}", "x".repeat(2000)))),
            ("zoneinfo", json!("Europe Paris")),
            ("locale", json!("en US")),
            ("phone_number", json!("+1 <script>")),
            ("address", json!("Somewhere")),
            ("preferred_username", json!("ada")),
            ("updated_at", json!(1)),
            ("sub", json!("x")),
            ("tier", json!("gold")),
        ] {
            assert_eq!(wrong(&json!({ name: value })), [name], "{value}");
        }
        let address = json!({ "locality": "a\nb", "country": 1, "floor": "2", "region": "" });
        assert_eq!(
            wrong(&json!({ "address": address })),
            [
                "address/country",
                "address/floor",
                "address/locality",
                "address/region"
            ]
        );
    }

    #[test]
    fn a_date_is_one_of_the_calendar() {
        for good in [
            "1996-02-29",
            "0000-02-29",
            "2000-02-29",
            "1990",
            "1999-12-31",
        ] {
            assert!(is_date(good), "{good}");
        }
        for bad in [
            "",
            "0000",
            "90",
            "1990-1-1",
            "1990-13-01",
            "1990-00-01",
            "1990-01-00",
            "1990-01-32",
            "1990-04-31",
            "1997-02-29",
            "1900-02-29",
            "1990-01",
            "1990-01-01-01",
            "+199-01-01",
        ] {
            assert!(!is_date(bad), "{bad}");
        }
    }
}
