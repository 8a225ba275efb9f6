//! What clients saw of their families, and whether that can be.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

/// For how long a retry has to be served.
const WINDOW: Duration = Duration::from_secs(30);

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Another refresh token.
    Successor(String),
    /// The family was revoked, as the client wished.
    Revoked,
    /// A refusal, for this reason.
    Refused(String),
    /// 503, or no answer at all: nobody knows whether it was done.
    Nothing,
    /// An answer that should not be.
    Unexpected(String),
}

/// One request of a client.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// Whose.
    pub(super) family: usize,
    /// When it was sent.
    pub(super) begun: Duration,
    /// When that was seen.
    pub(super) ended: Duration,
    /// What it presented.
    pub(super) token: String,
    /// What for.
    pub(super) revokes: bool,
    /// What came of it.
    pub(super) seen: Seen,
}

/// Everything that clients saw.
#[derive(Debug, Default)]
pub(super) struct History(pub(super) Vec<Attempt>);

impl History {
    /// What cannot be, each in a sentence.
    ///
    /// A retry within the window is never refused, unless its client had revoked the family; all
    /// answers to one token have one successor, and no token succeeds two; what was revoked stays
    /// so; there is no error but 503.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut families: BTreeMap<usize, Vec<&Attempt>> = BTreeMap::new();
        for attempt in &self.0 {
            families.entry(attempt.family).or_default().push(attempt);
        }
        families
            .values()
            .flat_map(|of_one| problems(of_one))
            .collect()
    }

    /// How many requests were seen to lead to this.
    pub(super) fn count(&self, is_one: impl Fn(&Seen) -> bool) -> usize {
        self.0
            .iter()
            .filter(|attempt| is_one(&attempt.seen))
            .count()
    }
}

fn problems(attempts: &[&Attempt]) -> Vec<String> {
    let mut found = Vec::new();
    let mut successors: HashMap<&str, &str> = HashMap::new();
    let mut predecessors: HashMap<&str, &str> = HashMap::new();
    let mut first_sent: HashMap<&str, Duration> = HashMap::new();
    for attempt in attempts {
        let sent = first_sent.entry(&attempt.token).or_insert(attempt.begun);
        *sent = (*sent).min(attempt.begun);
    }
    let revocations = || attempts.iter().filter(|attempt| attempt.revokes);
    // From the first on anybody may be refused; from the second on everybody must be.
    let may_be_refused = revocations().map(|attempt| attempt.begun).min();
    let must_be_refused = revocations()
        .filter(|attempt| attempt.seen == Seen::Revoked)
        .map(|attempt| attempt.ended)
        .min();
    for attempt in attempts {
        let token = attempt.token.as_str();
        match &attempt.seen {
            Seen::Successor(successor) => {
                if successors
                    .insert(token, successor)
                    .is_some_and(|other| other != successor)
                {
                    found.push(format!("one token has two successors: {attempt:?}"));
                }
                let other = predecessors.insert(successor, token);
                if other.is_some_and(|other| other != token) || successor == token {
                    found.push(format!("one token succeeds two: {attempt:?}"));
                }
                if must_be_refused.is_some_and(|revoked| revoked < attempt.begun) {
                    found.push(format!("a revoked family is alive: {attempt:?}"));
                }
            }
            Seen::Refused(_) => {
                let is_revoked = may_be_refused.is_some_and(|begun| begun < attempt.ended);
                let waited = attempt.begun.saturating_sub(first_sent[token]);
                if !is_revoked && waited < WINDOW {
                    found.push(format!(
                        "a retry within the window was refused: {attempt:?}"
                    ));
                }
            }
            Seen::Unexpected(_) => found.push(format!("an answer that should not be: {attempt:?}")),
            Seen::Revoked | Seen::Nothing => {}
        }
    }
    let is_cyclic = successors.keys().any(|start| {
        let mut passed = HashSet::new();
        let mut token = *start;
        while passed.insert(token) {
            match successors.get(token) {
                Some(next) => token = next,
                None => return false,
            }
        }
        true
    });
    if is_cyclic {
        found.push("a lineage leads back to itself".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(begun: u64, token: &str, seen: Seen) -> Attempt {
        Attempt {
            family: 0,
            begun: Duration::from_secs(begun),
            ended: Duration::from_secs(begun) + Duration::from_millis(500),
            token: token.to_owned(),
            revokes: false,
            seen,
        }
    }

    fn revocation(begun: u64, seen: Seen) -> Attempt {
        Attempt {
            revokes: true,
            ..attempt(begun, "a", seen)
        }
    }

    fn to(token: &str) -> Seen {
        Seen::Successor(token.to_owned())
    }

    fn refused() -> Seen {
        Seen::Refused("reuse".to_owned())
    }

    fn problems_of(attempts: &[Attempt]) -> usize {
        History(attempts.to_vec()).problems().len()
    }

    #[test]
    fn what_can_be_is_no_problem() {
        let lost = attempt(1, "a", Seen::Nothing);
        let history = [
            lost,
            attempt(2, "a", to("b")),
            attempt(3, "a", to("b")),
            attempt(4, "b", to("c")),
        ];
        assert_eq!(problems_of(&history), 0);
        // Too late for the window.
        let late = [attempt(1, "a", Seen::Nothing), attempt(31, "a", refused())];
        assert_eq!(problems_of(&late), 0);
        // The revocation may have been done although nobody heard of it.
        let unheard = [revocation(1, Seen::Nothing), attempt(2, "a", refused())];
        assert_eq!(problems_of(&unheard), 0);
        let undone = [revocation(1, Seen::Nothing), attempt(2, "a", to("b"))];
        assert_eq!(problems_of(&undone), 0);
        let raced = [revocation(1, Seen::Revoked), attempt(1, "a", to("b"))];
        assert_eq!(problems_of(&raced), 0);
    }

    #[test]
    fn what_cannot_be_is_found() {
        let forked = [attempt(1, "a", to("b")), attempt(2, "a", to("c"))];
        assert_eq!(problems_of(&forked), 1);
        let merged = [attempt(1, "a", to("c")), attempt(2, "b", to("c"))];
        assert_eq!(problems_of(&merged), 1);
        let circle = [attempt(1, "a", to("b")), attempt(2, "b", to("a"))];
        assert_eq!(problems_of(&circle), 1);
        let lost = [attempt(1, "a", Seen::Nothing), attempt(30, "a", refused())];
        assert_eq!(problems_of(&lost), 1);
        let early = [attempt(1, "a", refused()), revocation(2, Seen::Revoked)];
        assert_eq!(problems_of(&early), 1);
        let risen = [revocation(1, Seen::Revoked), attempt(2, "a", to("b"))];
        assert_eq!(problems_of(&risen), 1);
        let failed = [attempt(1, "a", Seen::Unexpected("500".to_owned()))];
        assert_eq!(problems_of(&failed), 1);
    }
}
