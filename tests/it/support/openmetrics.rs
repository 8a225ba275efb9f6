//! A strict reader of the `OpenMetrics` text format, as far as the service uses it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use countersign::metrics::Reading;

use super::{client, server::answer};

/// The state of a service that has done nothing.
pub(crate) const NOTHING: Reading = Reading {
    keys: Vec::new(),
    sync_lag: Duration::ZERO,
    database_up: true,
    clock_offset_ms: 0,
    revocation_entries: 0,
    queues: Vec::new(),
};

/// What is said of a family before its samples.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) unit: Option<String>,
    pub(crate) help: String,
}

/// A whole exposition.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    pub(crate) families: BTreeMap<String, Family>,
    /// Values by series, written as `name{label="value",…}`.
    pub(crate) series: BTreeMap<String, f64>,
}

/// What the admin listener tells, as it stands and as it is read.
pub(crate) async fn scrape(admin: SocketAddr) -> (String, Exposition) {
    let url = format!("http://{admin}/metrics");
    let answer = answer(client().build().unwrap().get(url)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let exposition = Exposition::parse(&answer.body);
    (answer.body, exposition)
}

impl Exposition {
    /// Reads an exposition; fails the test when it breaks a rule of the format.
    pub(crate) fn parse(text: &str) -> Self {
        let body = text
            .strip_suffix("# EOF\n")
            .expect("it has to end with # EOF");
        let mut read = Self::default();
        let mut current = String::new();
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                read.metadata(comment, &mut current);
            } else {
                read.sample(line, &current);
            }
        }
        for (name, family) in &read.families {
            assert!(!family.help.is_empty(), "{name} has no help");
            assert!(!family.kind.is_empty(), "{name} has no type");
            if let Some(unit) = &family.unit {
                assert!(name.ends_with(&format!("_{unit}")), "{name} lacks {unit}");
            }
            if family.kind == "histogram" {
                read.check_histogram(name);
            }
        }
        read
    }

    fn metadata(&mut self, comment: &str, current: &mut String) {
        let mut parts = comment.splitn(3, ' ');
        let (keyword, name, rest) = (
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap_or_default(),
        );
        assert!(is_name(name), "{name} is no name");
        if name != *current {
            let before = self.families.insert(name.to_owned(), Family::default());
            assert!(before.is_none(), "{name} comes twice");
            name.clone_into(current);
        }
        let family = self.families.get_mut(name).unwrap();
        match keyword {
            "HELP" => rest.clone_into(&mut family.help),
            "TYPE" => {
                let known = ["counter", "gauge", "histogram", "info"];
                assert!(known.contains(&rest), "{name} has the type {rest}");
                rest.clone_into(&mut family.kind);
            }
            "UNIT" => family.unit = Some(rest.to_owned()),
            other => panic!("the keyword {other}"),
        }
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        let suffix = name.strip_prefix(family).expect("out of its family");
        let suffixes: &[&str] = match self.families[family].kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &["_info"],
        };
        assert!(suffixes.contains(&suffix), "{line}");
        check_labels(labels, line);
        let value = match value {
            "NaN" => f64::NAN,
            "+Inf" => f64::INFINITY,
            number => number.parse().unwrap(),
        };
        if suffix == "_total" {
            assert!(value >= 0.0, "{line}");
        }
        let before = self.series.insert(series.to_owned(), value);
        assert!(before.is_none(), "{series} comes twice");
    }

    /// Buckets are cumulative and the last one is the count.
    fn check_histogram(&self, name: &str) {
        let counts = self.starting_with(&format!("{name}_count"));
        for (series, count) in counts {
            let labels = series.strip_prefix(&format!("{name}_count")).unwrap();
            let labels = labels.trim_matches(['{', '}']);
            let mut buckets: Vec<(f64, f64)> = self
                .starting_with(&format!("{name}_bucket"))
                .filter(|(series, _)| labels.is_empty() || series.contains(labels))
                .map(|(series, value)| {
                    let bound = series.split_once("le=\"").unwrap().1;
                    let bound = bound.split_once('"').unwrap().0;
                    (bound.replace("+Inf", "inf").parse().unwrap(), value)
                })
                .collect();
            buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            assert!(
                buckets.is_sorted_by(|(_, a), (_, b)| a <= b),
                "{series}: {buckets:?}"
            );
            let (bound, all) = *buckets.last().unwrap();
            assert!(bound.is_infinite(), "{series}");
            assert!((all - count).abs() < f64::EPSILON, "{series}");
        }
    }

    fn starting_with(&self, prefix: &str) -> impl Iterator<Item = (&str, f64)> + use<'_> {
        let (bare, labelled) = (prefix.to_owned(), format!("{prefix}{{"));
        self.series
            .iter()
            .filter(move |(series, _)| **series == bare || series.starts_with(&labelled))
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// The value of a series; zero for a counter that has not begun.
    pub(crate) fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    /// The series of a family that differ from those of an earlier exposition, with the difference.
    pub(crate) fn moved(&self, since: &Self, family: &str) -> BTreeMap<String, f64> {
        let prefix = format!("{family}{{");
        self.series
            .iter()
            .filter(|(series, _)| series.starts_with(&prefix))
            .map(|(series, value)| (series.clone(), value - since.value(series)))
            .filter(|(_, difference)| difference.abs() > 0.0)
            .collect()
    }
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check_labels(labels: &str, line: &str) {
    if labels.is_empty() {
        return;
    }
    for label in labels.split("\",") {
        let (name, value) = label.split_once("=\"").expect(line);
        assert!(is_name(name), "{line}");
        // What would need an escape is in none of our constants.
        assert!(!value.contains(['\\', '\n']), "{line}");
    }
}
