//! Whom a request comes from, past the proxies in front.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

/// The proxies whose word on addresses counts.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    /// One of them has been seen to write what is no address.
    is_warned: Arc<AtomicBool>,
}

impl TrustedProxies {
    /// The proxies of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self {
            networks,
            is_warned: Arc::default(),
        }
    }

    /// Whether this is the address of one.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The address of the client whose request came over a connection of `peer`.
    ///
    /// # Security
    /// Whoever sends a request writes what it likes into `X-Forwarded-For`, and each proxy adds at
    /// the end whom it heard from. So it is read from its end, for as long as the trusted have
    /// written it; and not at all when the request comes from somebody else. What is no address, with
    /// or without a port, ends the reading, too.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let lines: Vec<_> = headers.get_all("x-forwarded-for").collect();
        let entries = lines
            .into_iter()
            .rev()
            .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let mut address = peer.to_canonical();
        for entry in entries {
            if !self.trusts(address) {
                break;
            }
            let entry = str::from_utf8(entry).map(|entry| entry.trim_matches([' ', '\t']));
            let Some(before) = entry.ok().and_then(read) else {
                self.warn(address);
                break;
            };
            address = before.to_canonical();
        }
        address
    }

    /// Once: others behind the proxy could fill the log otherwise. Never with what is written there,
    /// which may be anything.
    fn warn(&self, proxy: IpAddr) {
        if !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %proxy,
                "a trusted proxy has written something else than an address at the end of \
                 X-Forwarded-For: limits cannot tell its clients apart; have it write the \
                 address of its client"
            );
        }
    }
}

/// The address of an entry; some load balancers write the port of the client, too.
fn read(entry: &str) -> Option<IpAddr> {
    let with_port = || entry.parse().map(|address: SocketAddr| address.ip());
    entry.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn proxies() -> TrustedProxies {
        let networks = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8:aa::/48"];
        TrustedProxies::new(networks.map(|network| network.parse().unwrap()).to_vec())
    }

    fn client(peer: &str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_bytes(line).unwrap();
            headers.append(HeaderName::from_static("x-forwarded-for"), value);
        }
        let address = proxies().client(peer.parse().unwrap(), &headers);
        address.to_string()
    }

    #[test]
    fn the_last_entry_that_no_trusted_proxy_stands_for_is_the_client() {
        let cases: &[(&str, &[&[u8]], &str)] = &[
            // Nobody is in front, whatever the header says.
            ("203.0.113.5", &[], "203.0.113.5"),
            ("203.0.113.5", &[b"198.51.100.1"], "203.0.113.5"),
            ("203.0.113.5", &[b"10.0.0.1"], "203.0.113.5"),
            // One proxy, with and without something made up before what it wrote.
            ("10.0.0.1", &[b"203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &[b"198.51.100.1, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &[b"10.0.0.9, 203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &[b"nonsense,203.0.113.5"], "203.0.113.5"),
            // Two proxies, in one line or two.
            ("10.0.0.1", &[b"203.0.113.5,192.0.2.7"], "203.0.113.5"),
            ("10.0.0.1", &[b"203.0.113.5", b"192.0.2.7"], "203.0.113.5"),
            (
                "10.0.0.1",
                &[b"1.1.1.1", b"203.0.113.5 ,\t192.0.2.7 "],
                "203.0.113.5",
            ),
            // Another address of the second one's network is not trusted.
            ("10.0.0.1", &[b"203.0.113.5, 192.0.2.8"], "192.0.2.8"),
            // Nothing but proxies: what asks is one.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What is no address.
            ("10.0.0.1", &[b""], "10.0.0.1"),
            ("10.0.0.1", &[b"unknown"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.5,"], "10.0.0.1"),
            (
                "10.0.0.1",
                &[b"203.0.113.5, unknown:80, 10.0.0.3"],
                "10.0.0.3",
            ),
            ("10.0.0.1", &[b"203.0.113.05"], "10.0.0.1"),
            ("10.0.0.1", &[b"0xcb007105"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.5 198.51.100.1"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.\xff"], "10.0.0.1"),
            // With a port.
            ("10.0.0.1", &[b"203.0.113.5:49152"], "203.0.113.5"),
            (
                "10.0.0.1",
                &[b"1.1.1.1, 203.0.113.5:1, 10.0.0.2:80"],
                "203.0.113.5",
            ),
            ("10.0.0.1", &[b"[2001:db8:bb::1]:443"], "2001:db8:bb::1"),
            ("10.0.0.1", &[b"[::ffff:203.0.113.5]:443"], "203.0.113.5"),
            ("10.0.0.1", &[b"203.0.113.5:65536"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.5:"], "10.0.0.1"),
            // IPv6, and IPv4 within it.
            ("2001:db8:aa::1", &[b"2001:db8:bb::1"], "2001:db8:bb::1"),
            ("2001:db8:bb::1", &[b"2001:db8:cc::1"], "2001:db8:bb::1"),
            ("::ffff:10.0.0.1", &[b"203.0.113.5"], "203.0.113.5"),
            (
                "10.0.0.1",
                &[b"203.0.113.5, ::ffff:192.0.2.7"],
                "203.0.113.5",
            ),
            ("10.0.0.1", &[b"::ffff:203.0.113.5"], "203.0.113.5"),
        ];
        for (peer, lines, expected) in cases {
            let lines_as_text: Vec<_> = lines.iter().map(|l| String::from_utf8_lossy(l)).collect();
            assert_eq!(client(peer, lines), *expected, "{peer} {lines_as_text:?}");
        }
    }

    proptest! {
        /// What stands before the entry of the nearest trusted proxy changes nothing.
        #[test]
        fn nobody_can_choose_an_address(made_up in "[ -~]{0,60}") {
            let forged = format!("{made_up},203.0.113.5");
            prop_assert_eq!(client("10.0.0.1", &[forged.as_bytes()]), "203.0.113.5");
            prop_assert_eq!(client("203.0.113.5", &[made_up.as_bytes()]), "203.0.113.5");
        }
    }
}
