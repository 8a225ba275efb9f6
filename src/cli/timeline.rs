//! Draws when each key is published and when it signs, one bar per key over a common time axis.

use super::output;
use crate::{
    clock::Timestamp,
    domain::{id::Kid, key::KeyTimes, words::span},
    keys::lifecycle::KeyState,
};

/// The width of the bars, in characters.
const WIDTH: usize = 56;

/// Names the rows of the chart: state and the first characters of the kid.
const LABEL: usize = 19;

const SIGNS: char = '█';
const PUBLISHED: char = '░';

/// The times of a key that is still of interest.
struct Bar<'a> {
    kid: &'a Kid,
    state: KeyState,
    times: KeyTimes,
    /// When its successor takes over.
    succeeded_at: Option<Timestamp>,
}

/// The lines of the chart; none if there is nothing to draw.
pub(super) fn draw(keys: &[(Kid, KeyState, KeyTimes)], now: Timestamp) -> Vec<String> {
    let bars = bars(keys);
    let Some((from, to)) = axis(&bars, now) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for bar in &bars {
        let kid: String = bar.kid.as_str().chars().take(8).collect();
        let label = format!("{:9}{kid}", bar.state.as_str());
        let cells: String = (0..WIDTH)
            .map(|column| bar.cell(middle(from, to, column)))
            .collect();
        lines.push(format!("{label:LABEL$}{cells}  {}", bar.remark(now)));
    }
    let before = (0..WIDTH)
        .filter(|column| middle(from, to, *column) < now)
        .count();
    lines.push(format!("{:LABEL$}{:before$}▲ now", "", ""));
    let (first, last) = (output::utc(from), output::utc(to));
    let gap = WIDTH.saturating_sub(first.len());
    lines.push(format!("{:LABEL$}{first}{last:>gap$}", ""));
    lines.push(format!(
        "{:LABEL$}{PUBLISHED} published   {SIGNS} signs",
        ""
    ));
    lines
}

fn bars(keys: &[(Kid, KeyState, KeyTimes)]) -> Vec<Bar<'_>> {
    // A key that was revoked before its turn never took over from another.
    let took_over = |times: &KeyTimes| times.revoked_at.is_none_or(|at| at > times.activates_at);
    let successor = |of: &KeyTimes| {
        keys.iter()
            .map(|(_, _, times)| times)
            .filter(|times| took_over(times) && times.activates_at > of.activates_at)
            .map(|times| times.activates_at)
            .min()
    };
    let mut bars: Vec<Bar<'_>> = keys
        .iter()
        .filter(|(_, state, _)| match state {
            KeyState::Active | KeyState::Next | KeyState::Retiring => true,
            KeyState::Retired | KeyState::Revoked => false,
        })
        .map(|(kid, state, times)| Bar {
            kid,
            state: *state,
            times: *times,
            succeeded_at: successor(times),
        })
        .collect();
    bars.sort_by_key(|bar| bar.times.activates_at);
    bars
}

/// The first and the last moment to draw: everything that is known, and a little of what follows.
fn axis(bars: &[Bar<'_>], now: Timestamp) -> Option<(Timestamp, Timestamp)> {
    let known = |bar: &Bar<'_>| bar.times.withdrawn_at.max(Some(bar.times.activates_at));
    let from = bars.iter().map(|bar| bar.times.published_at).min()?;
    let last = bars.iter().filter_map(known).max()?.max(now);
    Some((from, last.plus(last.since(from) / 5)))
}

/// The moment in the middle of a column.
fn middle(from: Timestamp, to: Timestamp, column: usize) -> Timestamp {
    let columns = u32::try_from(WIDTH * 2).unwrap_or(1);
    let halves = u32::try_from(column * 2 + 1).unwrap_or(1);
    from.plus(to.since(from) / columns * halves)
}

impl Bar<'_> {
    fn cell(&self, at: Timestamp) -> char {
        let times = &self.times;
        let published = times.published_at <= at && times.withdrawn_at.is_none_or(|end| at < end);
        let signs = times.activates_at <= at && self.succeeded_at.is_none_or(|end| at < end);
        match (published, signs) {
            (false, _) => ' ',
            (true, false) => PUBLISHED,
            (true, true) => SIGNS,
        }
    }

    fn remark(&self, now: Timestamp) -> String {
        let in_time = |time: Timestamp| output::relative(time, now);
        match self.state {
            KeyState::Active => self.succeeded_at.map_or_else(
                || "signs".to_owned(),
                |end| format!("signs for another {}", span(end.since(now))),
            ),
            KeyState::Next => format!("signs {}", in_time(self.times.activates_at)),
            KeyState::Retired | KeyState::Retiring | KeyState::Revoked => {
                let withdrawn_at = self.times.withdrawn_at;
                withdrawn_at.map_or_else(String::new, |end| format!("withdrawn {}", in_time(end)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn key(
        initial: &str,
        state: KeyState,
        [published_at, activates_at]: [i64; 2],
        withdrawn_at: Option<i64>,
    ) -> (Kid, KeyState, KeyTimes) {
        let at = |hours: i64| Timestamp::from_seconds(NOW + hours * 3600);
        let times = KeyTimes {
            published_at: at(published_at),
            activates_at: at(activates_at),
            withdrawn_at: withdrawn_at.map(at),
            revoked_at: None,
        };
        (Kid::parse(&initial.repeat(43)).unwrap(), state, times)
    }

    #[test]
    fn each_key_signs_from_where_its_predecessor_ends() {
        let keys = [
            key("c", KeyState::Next, [0, 30], None),
            key("a", KeyState::Retiring, [-60, -30], Some(10)),
            key("b", KeyState::Active, [-30, 0], Some(40)),
            key("d", KeyState::Retired, [-90, -60], Some(-20)),
        ];
        let drawn = draw(&keys, Timestamp::from_seconds(NOW));
        let expected = [
            "retiring aaaaaaaa  ░░░░░░░░░░░░░░██████████████░░░░░                         withdrawn in 10 hours",
            "active   bbbbbbbb                ░░░░░░░░░░░░░░██████████████░░░░░           signs for another 30 hours",
            "next     cccccccc                              ░░░░░░░░░░░░░░██████████████  signs in 30 hours",
            "                                               ▲ now",
            "                   2027-01-12 20:00                        2027-01-17 20:00",
            "                   ░ published   █ signs",
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn without_keys_there_is_nothing_to_draw() {
        assert!(draw(&[], Timestamp::from_seconds(NOW)).is_empty());
    }
}
