//! Where sockets are to be instead: `--tcp-remap OLD=NEW`.

use std::net::{IpAddr, SocketAddr};

use crate::error::Failure;
use crate::typed::bad_value;

/// An address, a port, or both, in the place of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remap {
    /// What the images have.
    pub old: End,
    /// What takes its place.
    pub new: End,
}

/// A part of an end of a connection: what is `None` can be anything, and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
}

impl End {
    /// `10.0.0.1`, `10.0.0.1:80`, `[fe80::1]:80`, `fe80::1` or `:80`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self {
                address: Some(address),
                port: None,
            });
        }
        if let Some(port) = text.strip_prefix(':') {
            return Some(Self {
                address: None,
                port: Some(port.parse().ok()?),
            });
        }
        let both: SocketAddr = text.parse().ok()?;
        Some(Self {
            address: Some(both.ip()),
            port: Some(both.port()),
        })
    }
}

impl Remap {
    /// Reads `OLD=NEW`. Both must say the same of an end: its address, its port, or both.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let remap = text.split_once('=').and_then(|(old, new)| {
            let (old, new) = (End::parse(old)?, End::parse(new)?);
            let family = |end: &End| end.address.map(|address| address.is_ipv4());
            let alike = family(&old) == family(&new) && old.port.is_some() == new.port.is_some();
            alike.then_some(Self { old, new })
        });
        remap.ok_or_else(|| bad_value("tcp-remap", text.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let good = [
            "10.0.0.1=10.0.0.2",
            "10.0.0.1:80=10.0.0.1:81",
            ":80=:81",
            "[::1]:1=[::2]:1",
            "::1=::2",
        ];
        for text in good {
            Remap::parse(text).expect(text);
        }
        for text in [
            "10.0.0.1",
            "10.0.0.1=",
            "10.0.0.1=::1",
            ":80=10.0.0.1",
            ":80=:x",
            "a=b",
        ] {
            Remap::parse(text).expect_err(text);
        }
    }
}
