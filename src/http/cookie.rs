//! The cookies that a request brings.
//!
//! `HttpRequest::cookie` is not used: it takes `%5F%5FHost-x` for `__Host-x`, which any other host of
//! the domain can set, and knows no cookie at all where one byte of one of them is not UTF-8.

use actix_web::{HttpRequest, http::header};

/// The value of the cookie of this name; none where there are several that differ, as nobody can tell
/// which is the browser's own.
///
/// # Security
/// Other hosts of the domain choose the names and values of cookies beside ours, but none whose name
/// begins, byte for byte, with `__Host-` (draft-ietf-httpbis-rfc6265bis §4.1.3.2).
pub(super) fn cookie<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let headers = request.headers().get_all(header::COOKIE);
    let parts = headers.flat_map(|header| header.as_bytes().split(|byte| *byte == b';'));
    let mut values = parts.filter_map(|part| {
        let value = part.trim_ascii_start().strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=").map(<[u8]>::trim_ascii_end)
    });
    let value = values.next()?;
    let is_the_only_one = values.all(|other| other == value);
    is_the_only_one
        .then_some(value)
        .and_then(|value| std::str::from_utf8(value).ok())
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header::HeaderValue, test::TestRequest};

    use super::*;

    #[test]
    fn names_are_compared_byte_by_byte_and_what_cannot_be_read_is_passed_over() {
        const NAME: &str = "__Host-countersign";
        for (headers, expected) in [
            (&["__Host-countersign=a"][..], Some("a")),
            (&["x=y;__Host-countersign=a; z"], Some("a")),
            (&["x=y", "__Host-countersign=a"], Some("a")),
            (&["x=caf\u{e9}; __Host-countersign=a; \u{e9}"], Some("a")),
            (
                &["%5F%5FHost-countersign=b; __Host-countersign=a"],
                Some("a"),
            ),
            (&["__Host-countersign=a=b"], Some("a=b")),
            (&["__Host-countersign=%61"], Some("%61")),
            (&["__Host-countersign=a; __Host-countersign=a"], Some("a")),
            (&["__Host-countersign="], Some("")),
            // Which of them is the browser's own?
            (&["__Host-countersign=a; __Host-countersign=b"], None),
            (&["__Host-countersign=a", "__Host-countersign=b"], None),
            (&["%5F%5FHost-countersign=b"], None),
            (&["__host-countersign=b"], None),
            (&["__Host-countersign =b"], None),
            (&["\"__Host-countersign\"=b"], None),
            (&["__Host-countersign"], None),
            (&["__Host-countersign-browser=b"], None),
            (&["x=__Host-countersign=b"], None),
            (&["__Host-countersign=\u{e9}"], None),
            (&[], None),
        ] {
            let mut request = TestRequest::default();
            for header in headers {
                // Latin-1, so that they are not UTF-8.
                let bytes: Vec<u8> = header.chars().map(|char| char as u8).collect();
                let value = HeaderValue::from_bytes(&bytes).unwrap();
                request = request.append_header((header::COOKIE, value));
            }
            let request = request.to_http_request();
            assert_eq!(cookie(&request, NAME), expected, "{headers:?}");
        }
    }
}
