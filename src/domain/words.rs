//! What people read, where it is the same in every interface.

use std::time::Duration;

/// What is wrong with a short text that people read on pages, if anything.
///
/// # Security
/// Characters that turn the direction of a text could make what stands beside it read otherwise.
pub fn problem_of_text(text: &str) -> Option<&'static str> {
    let fits = text.chars().any(|it| !is_unseen(it) && !it.is_whitespace())
        && text.chars().count() <= 200
        && !text.chars().any(|it| it.is_control() || turns(it));
    (!fits).then_some(
        "must be 1 to 200 characters without control characters, and none that turns the direction of a text",
    )
}

/// Control characters, and those that Unicode lets nobody see (`Default_Ignorable_Code_Point`) or
/// that turn the direction of a text: names that differ in them look the same.
pub(super) fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Whether a character has the bidirectional property `Bidi_Control` (UAX #9).
const fn turns(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// A span in the largest unit of which it has at least two, rounded.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (unit_seconds, unit) = match seconds {
        0..120 => (1, "second"),
        120..7200 => (60, "minute"),
        7200..172_800 => (3600, "hour"),
        _ => (86_400, "day"),
    };
    let count = (seconds + unit_seconds / 2) / unit_seconds;
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_short_and_reads_as_it_is_written() {
        let long = "ä".repeat(200);
        for good in ["See your orders", "הזמנות", "نمی‌خواهم", "👩‍🚀", &long]
        {
            assert_eq!(problem_of_text(good), None, "{good}");
        }
        let longer = "ä".repeat(201);
        for bad in [
            "",
            " ",
            "\u{200b}\u{2060}",
            "\u{3164}",
            "a\nb",
            "a\0",
            "a\u{202e}b",
            "\u{2066}a",
            "a\u{200f}",
            "\u{61c}",
            &longer,
        ] {
            assert!(problem_of_text(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_span_is_told_in_the_largest_unit_that_fits_twice() {
        for (seconds, told) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7199, "120 minutes"),
            (7200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), told);
        }
    }
}
