//! What a browser or an app says it is, in plain words.

/// Browsers by a mark in what they say. Each claims to be some of those that come after it.
const BROWSERS: [(&str, &str); 9] = [
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Vivaldi/", "Vivaldi"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
];

/// What they run on, likewise.
const SYSTEMS: [(&str, &str); 7] = [
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Mac OS X", "Mac"),
    ("Linux", "Linux"),
];

/// The longest name of a program that is shown, in characters.
const LONGEST: usize = 40;

/// What somebody uses, as far as that is known.
///
/// # Security
/// Whoever sends a request chooses `user_agent`: nothing is concluded from it.
pub(super) fn in_words(user_agent: Option<&str>) -> String {
    let Some(text) = user_agent.map(str::trim).filter(|text| !text.is_empty()) else {
        return "An unknown device".to_owned();
    };
    let find = |marks: &[(&str, &'static str)]| {
        let found = marks.iter().find(|(mark, _)| text.contains(mark));
        found.map(|(_, name)| *name)
    };
    match (find(&BROWSERS), find(&SYSTEMS)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        (None, Some(system)) => format!("An app on {system}"),
        (None, None) => {
            // A program's name comes first (RFC 9110 §10.1.5).
            let name = text.split(['/', ' ', '(']).next().unwrap_or_default();
            match name.chars().take(LONGEST).collect::<String>() {
                name if name.is_empty() => "An unknown device".to_owned(),
                name => name,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_and_systems_are_told_in_plain_words() {
        for (text, words) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
                "Firefox on Linux",
            ),
            (
                "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/140.0.0.0 Mobile Safari/537.36",
                "Chrome on Android",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 15_0) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) Version/19.0 Safari/605.1.15",
                "Safari on Mac",
            ),
            ("Notes/3.1 (Android 15)", "An app on Android"),
            ("curl/8.9.1", "curl"),
            ("reqwest", "reqwest"),
            ("", "An unknown device"),
            ("   ", "An unknown device"),
            ("/", "An unknown device"),
        ] {
            assert_eq!(in_words(Some(text)), words, "{text}");
        }
        assert_eq!(in_words(None), "An unknown device");
        let long = "x".repeat(250);
        assert_eq!(in_words(Some(&long)).len(), LONGEST);
    }
}
