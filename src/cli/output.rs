//! Everything that is printed, and the only place that prints.
//!
//! What comes from a database, a token or a file may have been written by an attacker: nothing here
//! passes on a character that could do more to a terminal than be read.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use serde_json::Value;
use time::{OffsetDateTime, macros::format_description};

use crate::{clock::Timestamp, domain::words::span};

/// Marks what is as it should be, and what is not.
pub(super) const RIGHT: &str = "✓";
pub(super) const WRONG: &str = "✗";

/// Standard output takes nothing more, for another reason than that its reader has gone.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written")]
pub(super) struct OutputError(#[source] io::Error);

/// Prints one line.
pub(super) fn line(text: &str) -> Result<(), OutputError> {
    write(&escape(text.trim_end()))
}

/// Prints a document for programs.
pub(super) fn json(document: &Value) -> Result<(), OutputError> {
    write(&escape_json(&format!("{document:#}")))
}

/// Prints a document for programs that read one a line.
pub(super) fn json_line(document: &Value) -> Result<(), OutputError> {
    write(&escape_json(&document.to_string()))
}

fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        // JSON leaves these in strings as they are; the line ends are its own.
        if character == '\n' || is_harmless(character) {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// Prints a text of this program's own, as it is.
pub(super) fn script(text: &str) -> Result<(), OutputError> {
    write(text.trim_end())
}

/// Prints rows as columns below their titles.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: &[[String; N]],
) -> Result<(), OutputError> {
    let titles = titles.map(str::to_owned);
    self::rows(&[&[titles], rows].concat())
}

/// Prints names and values below each other.
pub(super) fn fields(fields: &[(&str, String)]) -> Result<(), OutputError> {
    let row = |(name, value): &(&str, String)| [(*name).to_owned(), value.clone()];
    rows(&fields.iter().map(row).collect::<Vec<_>>())
}

/// Prints rows as columns.
pub(super) fn rows<const N: usize>(rows: &[[String; N]]) -> Result<(), OutputError> {
    for row in align(rows) {
        line(&row)?;
    }
    Ok(())
}

/// Says something to the person at the terminal, apart from the output.
pub(super) fn remark(text: &str) {
    // There is no place left to report that this failed.
    let _ = writeln!(io::stderr().lock(), "countersign: {}", escape(text));
}

/// Pads cells to columns.
fn align<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| escape(cell)))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let padded = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ")
    };
    rows.iter().map(padded).collect()
}

fn write(text: &str) -> Result<(), OutputError> {
    match writeln!(io::stdout().lock(), "{text}") {
        // Whoever was reading has seen enough, as in `countersign clients list | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(OutputError),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            escaped.push(character);
        } else {
            escaped.extend(character.escape_default());
        }
    }
    escaped
}

/// Whether a character neither moves the cursor nor reorders or hides its neighbours.
fn is_harmless(character: char) -> bool {
    // `escape_debug` knows Unicode's tables; it escapes quotes and backslashes for other reasons.
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1
}

/// A time as people read it, in UTC.
pub(super) fn utc(time: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    format_time(time, format)
}

/// The same with seconds and the name of the zone.
pub(super) fn utc_seconds(time: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    format_time(time, format)
}

fn format_time(time: Timestamp, format: &(impl time::formatting::Formattable + ?Sized)) -> String {
    OffsetDateTime::from_unix_timestamp(time.seconds())
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| time.seconds().to_string())
}

/// A time as its distance from now.
pub(super) fn relative(time: Timestamp, now: Timestamp) -> String {
    if time > now {
        format!("in {}", span(time.since(now)))
    } else {
        format!("{} ago", span(now.since(time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_act_on_a_terminal_is_shown_as_text() {
        assert_eq!(escape("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(
            escape("a\nb\u{9b}\u{202e}\u{200b}"),
            "a\\nb\\u{9b}\\u{202e}\\u{200b}"
        );
        assert_eq!(escape("\"ä\" 'ö' \\ █ ✓ 名"), "\"ä\" 'ö' \\ █ ✓ 名");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "x"], ["äöü\n", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(align(&rows), ["a      x", "äöü\\n  y"]);
    }

    #[test]
    fn times_are_shown_in_utc_and_from_now() {
        let now = Timestamp::from_seconds(1_800_000_000);
        assert_eq!(utc(now), "2027-01-15 08:00");
        assert_eq!(utc_seconds(now), "2027-01-15 08:00:00 UTC");
        for (seconds, shown) in [
            (0, "0 seconds ago"),
            (-1, "1 second ago"),
            (119, "in 119 seconds"),
            (120, "in 2 minutes"),
            (-7200, "2 hours ago"),
            (3 * 86_400 - 1, "in 3 days"),
        ] {
            let time = Timestamp::from_seconds(now.seconds() + seconds);
            assert_eq!(relative(time, now), shown);
        }
    }
}
