//! What becomes of TCP connections: `--tcp-established`, `--tcp-close`, `--tcp-policy`, `--skip-in-flight`,
//! `--network-lock`.

use crate::error::Failure;
use crate::remap::End;
use crate::typed::{Typed, bad_value};

/// What is done about TCP connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// They are kept.
    pub established: bool,
    /// They are closed; written in the inventory, where both must agree.
    pub close: bool,
    /// What becomes of some; the first policy that is about a connection counts, and before both of the above.
    pub policies: Vec<TcpPolicy>,
    /// Those that nobody has accepted are forgotten.
    pub skip_in_flight: bool,
    /// Packets of theirs are kept away meanwhile.
    pub lock: NetworkLock,
}

/// How packets are kept away. There is one way: the older name means it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    /// By a table of nf_tables.
    Nftables,
    /// Not at all.
    Skip,
}

/// What becomes of some connections: `--tcp-policy WHICH=HOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPolicy {
    /// Which of their ends it is about.
    pub side: TcpSide,
    /// The end.
    pub end: End,
    /// What becomes of them.
    pub fate: TcpFate,
}

/// `local:`, `remote:` or none of them in front of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSide {
    /// One of both.
    Either,
    /// That of the tree.
    Local,
    /// The other one.
    Remote,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpFate {
    /// It is kept.
    Keep,
    /// It is closed, and the other end is not told.
    Close,
    /// It is closed, and the other end is told by a RST.
    Reset,
    /// It ends as it does when a program ends, and only who listens stays.
    ListenOnly,
}

impl TcpPolicy {
    /// Reads `WHICH=HOW`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let policy = text.rsplit_once('=').and_then(|(which, how)| {
            let fate = match how {
                "keep" => TcpFate::Keep,
                "close" => TcpFate::Close,
                "reset" => TcpFate::Reset,
                "listen-only" => TcpFate::ListenOnly,
                _ => return None,
            };
            let sides = [("local:", TcpSide::Local), ("remote:", TcpSide::Remote)];
            let mut named = sides
                .into_iter()
                .filter_map(|(name, side)| Some((side, which.strip_prefix(name)?)));
            let (side, end) = named.next().unwrap_or((TcpSide::Either, which));
            let of_any = |port| End {
                address: None,
                port,
            };
            let end = match (end, end.strip_prefix("*:")) {
                ("*", _) => of_any(None),
                (_, Some(port)) => of_any(Some(port.parse().ok()?)),
                (end, None) => End::parse(end)?,
            };
            Some(Self { side, end, fate })
        });
        policy.ok_or_else(|| bad_value("tcp-policy", text.as_ref()))
    }
}

impl Tcp {
    pub(crate) fn read(typed: &Typed) -> Result<Self, Failure> {
        let lock = match typed.value("network-lock") {
            None => NetworkLock::Nftables,
            Some(how) => match how.to_str() {
                Some("iptables" | "nftables") => NetworkLock::Nftables,
                Some("skip" | "none") => NetworkLock::Skip,
                _ => return Err(bad_value("network-lock", how)),
            },
        };
        Ok(Self {
            established: typed.switch("tcp-established", false),
            close: typed.switch("tcp-close", false),
            policies: typed.texts("tcp-policy", TcpPolicy::parse)?,
            skip_in_flight: typed.switch("skip-in-flight", false),
            lock,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let read = |text: &str| {
            let policy = TcpPolicy::parse(text).expect(text);
            let address = policy.end.address.map(|address| address.to_string());
            (policy.side, address, policy.end.port, policy.fate)
        };
        let address = |text: &str| Some(text.to_owned());
        for (text, policy) in [
            (
                "*:80=keep",
                (TcpSide::Either, None, Some(80), TcpFate::Keep),
            ),
            (
                ":80=reset",
                (TcpSide::Either, None, Some(80), TcpFate::Reset),
            ),
            ("*=close", (TcpSide::Either, None, None, TcpFate::Close)),
            (
                "local:*:80=listen-only",
                (TcpSide::Local, None, Some(80), TcpFate::ListenOnly),
            ),
            (
                "remote:10.0.0.5:5432=keep",
                (
                    TcpSide::Remote,
                    address("10.0.0.5"),
                    Some(5432),
                    TcpFate::Keep,
                ),
            ),
            (
                "remote:[fe80::1]:9=reset",
                (TcpSide::Remote, address("fe80::1"), Some(9), TcpFate::Reset),
            ),
            (
                "::1=close",
                (TcpSide::Either, address("::1"), None, TcpFate::Close),
            ),
            (
                "local:::1=close",
                (TcpSide::Local, address("::1"), None, TcpFate::Close),
            ),
        ] {
            assert_eq!(read(text), policy, "{text}");
        }
        for text in [
            "",
            "=keep",
            "*:80",
            "*:80=",
            "*:80=drop",
            "*:x=keep",
            "*10.0.0.1=keep",
            "here:*:80=keep",
            "10.0.0.1:99999=keep",
        ] {
            TcpPolicy::parse(text).expect_err(text);
        }
    }
}
