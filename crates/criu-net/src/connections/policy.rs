//! What becomes of a connection: what is said of it alone, and what is said of all.

use std::net::SocketAddr;

use crate::connections::remap::End;

/// What becomes of a connection. Listening sockets always stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is kept.
    Keep,
    /// It comes back closed; the other end hears of that when it sends something itself.
    Close,
    /// It comes back closed, and the other end is told by a RST.
    Reset,
    /// It comes back closed, and the other end hears what it hears when a program ends. Who waits to be accepted is
    /// forgotten.
    ListenOnly,
}

/// Which of both ends a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// One of them.
    Either,
    /// The one in the tree.
    Local,
    /// The other one.
    Remote,
}

/// What becomes of some connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Where they have the end.
    pub side: Side,
    /// The end.
    pub end: End,
    /// What becomes of them.
    pub fate: Fate,
}

impl Policy {
    fn covers(&self, local: &SocketAddr, remote: Option<&SocketAddr>) -> bool {
        let (address, port) = self.end;
        let is_it = |end: &SocketAddr| {
            // What a socket of IPv6 has of IPv4 is of IPv4.
            address.is_none_or(|one| one.to_canonical() == end.ip().to_canonical())
                && port.is_none_or(|one| one == end.port())
        };
        match self.side {
            Side::Local => is_it(local),
            Side::Remote => remote.is_some_and(is_it),
            Side::Either => is_it(local) || remote.is_some_and(is_it),
        }
    }
}

/// What is said of connections: `--tcp-policy`, and of all that it does not cover `--tcp-established`, `--tcp-close`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// The first that covers a connection counts.
    pub each: Vec<Policy>,
    /// The others are kept.
    pub established: bool,
    /// The others are closed.
    pub close: bool,
}

impl Policies {
    /// What is said of this connection alone.
    pub(crate) fn own(&self, local: &SocketAddr, remote: &SocketAddr) -> Option<Fate> {
        let mut each = self.each.iter();
        let policy = each.find(|policy| policy.covers(local, Some(remote)));
        policy.map(|policy| policy.fate)
    }

    /// Whether connections of both ends may be kept or closed: nothing is said otherwise.
    pub(crate) fn is_known(&self, local: &SocketAddr, remote: &SocketAddr) -> bool {
        self.established || self.close || self.own(local, remote).is_some()
    }

    /// Whether it is kept.
    pub(crate) fn keeps(&self, local: &SocketAddr, remote: &SocketAddr) -> bool {
        match self.own(local, remote) {
            Some(fate) => fate == Fate::Keep,
            None => self.established && !self.close,
        }
    }

    /// Whether those who wait at a listening socket are forgotten.
    pub(crate) fn listens_only(&self, local: &SocketAddr) -> bool {
        let mut each = self.each.iter();
        let policy = each.find(|policy| policy.covers(local, None));
        policy.is_some_and(|policy| policy.fate == Fate::ListenOnly)
    }
}

/// What to do about connections of which nothing is said.
pub(crate) const REMEDY: &str = "keep them with --tcp-established, close them with --tcp-close, or say of each what \
                                 becomes of it with --tcp-policy";

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an end")
    }

    fn policy(side: Side, address: Option<&str>, port: Option<u16>, fate: Fate) -> Policy {
        let address = address.map(|text| text.parse().expect("an address"));
        let end = (address, port);
        Policy { side, end, fate }
    }

    #[test]
    fn the_first_that_covers_it_counts_and_then_what_is_said_of_all() {
        let mut policies = Policies {
            each: vec![
                policy(Side::Remote, Some("10.0.0.5"), Some(5432), Fate::Keep),
                policy(Side::Local, None, Some(80), Fate::ListenOnly),
                policy(Side::Either, Some("10.0.0.5"), None, Fate::Reset),
                policy(Side::Either, Some("::1"), Some(7), Fate::Close),
            ],
            ..Policies::default()
        };
        let of = |policies: &Policies, local: &str, remote: &str| {
            policies.own(&end(local), &end(remote))
        };
        for (local, remote, fate) in [
            ("10.0.0.1:80", "10.0.0.5:5432", Some(Fate::Keep)),
            (
                "[::ffff:10.0.0.1]:9",
                "[::ffff:10.0.0.5]:5432",
                Some(Fate::Keep),
            ),
            ("10.0.0.5:5432", "10.0.0.1:9", Some(Fate::Reset)),
            ("10.0.0.1:80", "10.0.0.5:9", Some(Fate::ListenOnly)),
            ("10.0.0.1:9", "10.0.0.5:80", Some(Fate::Reset)),
            ("[::1]:9", "[::1]:7", Some(Fate::Close)),
            ("10.0.0.1:9", "10.0.0.6:80", None),
        ] {
            assert_eq!(of(&policies, local, remote), fate, "{local} - {remote}");
        }
        let (local, remote) = (end("10.0.0.1:9"), end("10.0.0.6:80"));
        assert!(!policies.is_known(&local, &remote) && !policies.keeps(&local, &remote));
        policies.established = true;
        assert!(policies.is_known(&local, &remote) && policies.keeps(&local, &remote));
        policies.close = true;
        assert!(policies.is_known(&local, &remote) && !policies.keeps(&local, &remote));
        assert!(policies.keeps(&end("10.0.0.1:80"), &end("10.0.0.5:5432")));
    }

    #[test]
    fn who_listens_has_no_other_end() {
        let policies = Policies {
            each: vec![
                policy(Side::Remote, None, None, Fate::ListenOnly),
                policy(Side::Either, None, Some(80), Fate::ListenOnly),
                policy(Side::Local, None, Some(81), Fate::Keep),
            ],
            ..Policies::default()
        };
        assert!(policies.listens_only(&end("0.0.0.0:80")));
        assert!(!policies.listens_only(&end("0.0.0.0:81")));
        assert!(!policies.listens_only(&end("0.0.0.0:82")));
    }
}
