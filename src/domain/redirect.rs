//! Where browsers are sent back to (RFC 6749 §3.1.2).

use std::fmt;

/// The longest redirect URI taken, in bytes.
const LONGEST: usize = 2000;

/// What the URIs of loopback interfaces begin with, the only ones whose port a client does not know
/// before it asks (RFC 8252 §7.3).
const LOOPBACK: [&str; 2] = ["http://127.0.0.1", "http://[::1]"];

/// Why a text is no redirect URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedirectUri {
    /// It is too long.
    #[error("must be 2000 characters at most")]
    TooLong,
    /// It is no absolute URI, or is not written as one.
    #[error(
        "must be an absolute URI in ASCII, without spaces, quotes, backslashes or user information"
    )]
    Malformed,
    /// "The endpoint URI MUST NOT include a fragment component" (RFC 6749 §3.1.2).
    #[error("must be without a fragment")]
    Fragment,
    /// Anybody on the way could read the code.
    #[error("must begin with https, unless it is for this machine itself")]
    Unencrypted,
    /// "a domain name … expressed in reverse order" (RFC 8252 §7.1).
    #[error(
        "must have a scheme of the app's own: a domain name in reverse order, such as com.example.app"
    )]
    Scheme,
}

/// A redirect URI of a client.
///
/// Kept and compared exactly as it was registered (RFC 9700 §4.1.3): nothing is normalised, so that
/// nothing can be normalised differently by a browser.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RedirectUri(String);

impl RedirectUri {
    /// Reads a redirect URI, as an operator registers it.
    pub fn parse(text: &str) -> Result<Self, InvalidRedirectUri> {
        if text.len() > LONGEST {
            return Err(InvalidRedirectUri::TooLong);
        }
        if text.contains('#') {
            return Err(InvalidRedirectUri::Fragment);
        }
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'<>\\^`{|}".contains(&byte);
        if !text.bytes().all(is_plain) {
            return Err(InvalidRedirectUri::Malformed);
        }
        let uri = url::Url::parse(text).map_err(|_| InvalidRedirectUri::Malformed)?;
        if !uri.username().is_empty() || uri.password().is_some() {
            return Err(InvalidRedirectUri::Malformed);
        }
        let start = format!("{}://", uri.scheme());
        let has_authority = text.strip_prefix(&start).is_some_and(|rest| {
            rest.bytes()
                .next()
                .is_some_and(|byte| !b"/?@:".contains(&byte))
        });
        match uri.scheme() {
            "https" if has_authority => {}
            "http" if has_authority => {
                let is_here = matches!(uri.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
                if !is_here {
                    return Err(InvalidRedirectUri::Unencrypted);
                }
            }
            "https" | "http" => return Err(InvalidRedirectUri::Malformed),
            scheme if scheme.contains('.') => {}
            _ => return Err(InvalidRedirectUri::Scheme),
        }
        Ok(Self(text.to_owned()))
    }

    /// The URI as it was registered.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a request that names `presented` means this one: they are the same, but for the port
    /// of a loopback interface (RFC 8252 §7.3).
    ///
    /// # Security
    /// Whoever sends the request chooses `presented`.
    pub fn admits(&self, presented: &str) -> bool {
        if self.0 == presented {
            return true;
        }
        match (without_port(&self.0), without_port(presented)) {
            (Some(registered), Some(presented)) => registered == presented,
            _ => false,
        }
    }
}

impl fmt::Display for RedirectUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A URI of a loopback interface as it is before and after its port; none of any other.
fn without_port(text: &str) -> Option<(&'static str, &str)> {
    let (start, rest) = LOOPBACK
        .iter()
        .find_map(|start| Some((*start, text.strip_prefix(start)?)))?;
    let rest = match rest.strip_prefix(':') {
        None => rest,
        Some(rest) => {
            let end = rest
                .bytes()
                .position(|byte| !byte.is_ascii_digit())
                .unwrap_or(rest.len());
            let (port, rest) = rest.split_at(end);
            // As a number is written: "080" is none that a browser would show.
            let is_port = port.parse::<u16>().is_ok_and(|it| it.to_string() == port);
            is_port.then_some(rest)?
        }
    };
    // What follows a host; otherwise the host would go on.
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some((start, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_uri_is_encrypted_or_for_this_machine_or_of_an_apps_own_scheme() {
        for good in [
            "https://app.example/callback",
            "https://app.example",
            "https://app.example:8443/cb?tenant=1",
            "https://app.example/%2e%2e/cb",
            "http://127.0.0.1/cb",
            "http://127.0.0.1:4000/cb",
            "http://[::1]/cb",
            "http://localhost:3000/cb",
            "com.example.app:/cb",
            "com.example.app://cb",
        ] {
            assert_eq!(RedirectUri::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", InvalidRedirectUri::Malformed),
            ("/callback", InvalidRedirectUri::Malformed),
            ("//app.example/cb", InvalidRedirectUri::Malformed),
            ("https:app.example/cb", InvalidRedirectUri::Malformed),
            ("https:/app.example/cb", InvalidRedirectUri::Malformed),
            ("https:evil.example/?://a", InvalidRedirectUri::Malformed),
            ("HTTPS://app.example/cb", InvalidRedirectUri::Malformed),
            ("https:///app.example/cb", InvalidRedirectUri::Malformed),
            (
                "https://good@evil.example/cb",
                InvalidRedirectUri::Malformed,
            ),
            ("https://:pw@evil.example/cb", InvalidRedirectUri::Malformed),
            ("https://app.example\\cb", InvalidRedirectUri::Malformed),
            ("https://app.example/c b", InvalidRedirectUri::Malformed),
            (
                "https://app.example/\r\nSet-Cookie:a",
                InvalidRedirectUri::Malformed,
            ),
            ("https://bücher.example/cb", InvalidRedirectUri::Malformed),
            ("https://*.example/cb\"", InvalidRedirectUri::Malformed),
            ("https://app.example/#cb", InvalidRedirectUri::Fragment),
            ("https://app.example/cb#", InvalidRedirectUri::Fragment),
            ("http://app.example/cb", InvalidRedirectUri::Unencrypted),
            (
                "http://127.0.0.1.evil.example/",
                InvalidRedirectUri::Unencrypted,
            ),
            ("http://0.0.0.0/cb", InvalidRedirectUri::Unencrypted),
            ("javascript:alert(1)", InvalidRedirectUri::Scheme),
            ("data:text/html,x", InvalidRedirectUri::Scheme),
            ("file:///etc/passwd", InvalidRedirectUri::Scheme),
            ("myapp://cb", InvalidRedirectUri::Scheme),
        ] {
            assert_eq!(RedirectUri::parse(bad), Err(why), "{bad:?}");
        }
        let long = format!("https://app.example/{}", "x".repeat(LONGEST));
        assert_eq!(RedirectUri::parse(&long), Err(InvalidRedirectUri::TooLong));
    }

    #[test]
    fn nothing_but_the_same_text_is_admitted() {
        let registered = RedirectUri::parse("https://app.example/cb").unwrap();
        assert!(registered.admits("https://app.example/cb"));
        for other in [
            "",
            "https://app.example/cb/",
            "https://app.example/CB",
            "https://APP.example/cb",
            "HTTPS://app.example/cb",
            "https://app.example:443/cb",
            "https://app.example/cb?a=b",
            "https://app.example/cb#",
            "https://app.example/./cb",
            "https://app.example/a/../cb",
            "https://app.example/%63b",
            "https://app.example/cb\n",
            "https://app.example@evil.example/cb",
            "https://app.example.evil.example/cb",
            "https://app.example\\@evil.example/cb",
            "http://app.example/cb",
        ] {
            assert!(!registered.admits(other), "{other:?}");
        }
    }

    #[test]
    fn a_loopback_interface_has_any_port() {
        for (registered, presented) in [
            ("http://127.0.0.1/cb", "http://127.0.0.1:49152/cb"),
            ("http://127.0.0.1:3000/cb", "http://127.0.0.1:1/cb"),
            ("http://127.0.0.1:3000/cb", "http://127.0.0.1/cb"),
            ("http://[::1]/cb?a=b", "http://[::1]:65535/cb?a=b"),
            ("http://127.0.0.1", "http://127.0.0.1:8080"),
        ] {
            let registered = RedirectUri::parse(registered).unwrap();
            assert!(registered.admits(presented), "{registered} {presented}");
        }
        for (registered, presented) in [
            ("http://127.0.0.1/cb", "http://127.0.0.1:0080/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:65536/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:80@evil.example/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:80.evil.example/cb"),
            ("http://127.0.0.1", "http://127.0.0.1.evil.example"),
            ("http://127.0.0.1", "http://127.0.0.1:80.evil.example"),
            ("http://127.0.0.1/cb", "http://[::1]/cb"),
            ("http://127.0.0.1/cb", "http://localhost/cb"),
            ("http://127.0.0.1/cb", "https://127.0.0.1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:80/cb/"),
            ("http://localhost:3000/cb", "http://localhost:3001/cb"),
            ("https://127.0.0.1/cb", "https://127.0.0.1:8443/cb"),
        ] {
            let registered = RedirectUri::parse(registered).unwrap();
            assert!(!registered.admits(presented), "{registered} {presented}");
        }
    }
}
