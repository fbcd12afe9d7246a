//! Addresses and ports that take the place of others: sockets of a copy, or on another host.

use std::net::{IpAddr, SocketAddr};

/// An address, a port, or both. What is `None` can be anything, and stays.
pub type End = (Option<IpAddr>, Option<u16>);

/// What takes the place of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remap {
    /// As the images have it.
    pub old: End,
    /// As it is to be.
    pub new: End,
}

impl Remap {
    /// The end that takes the place of this one, if it is about that.
    fn apply(&self, end: &SocketAddr) -> Option<SocketAddr> {
        let (address, port) = self.old;
        let is_it =
            address.is_none_or(|one| one == end.ip()) && port.is_none_or(|one| one == end.port());
        let (address, port) = self.new;
        is_it.then(|| SocketAddr::new(address.unwrap_or(end.ip()), port.unwrap_or(end.port())))
    }
}

/// Where an end is to be: the first of them that is about it counts.
pub(crate) fn remapped(all: &[Remap], end: SocketAddr) -> SocketAddr {
    all.iter().find_map(|one| one.apply(&end)).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_fits() {
        let address = |text: &str| Some(text.parse().expect("an address"));
        let all = [
            Remap {
                old: (address("10.0.0.1"), Some(80)),
                new: (address("10.0.0.2"), Some(81)),
            },
            Remap {
                old: (address("10.0.0.1"), None),
                new: (address("10.0.0.3"), None),
            },
            Remap {
                old: (None, Some(80)),
                new: (None, Some(82)),
            },
        ];
        for (from, to) in [
            ("10.0.0.1:80", "10.0.0.2:81"),
            ("10.0.0.1:7", "10.0.0.3:7"),
            ("[::1]:80", "[::1]:82"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(
                remapped(&all, from.parse().expect("an end")).to_string(),
                to
            );
        }
    }
}
