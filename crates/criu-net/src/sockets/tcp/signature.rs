//! Keys of TCP-MD5 (RFC 2385): each segment is signed, and one that is not is not heard.
//!
//! No option reads them, but sock_diag(7) tells who has `CAP_NET_ADMIN`, of sockets that have a port.
//! Not preserved: the device of a key that is for one of a VRF, and keys of sockets without a port: nobody is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;

use crate::sockets::inet::address::encode;

/// `struct tcp_diag_md5sig` of `include/uapi/linux/tcp.h`: family, length of the prefix, of the key; address; key.
const TOLD: usize = 4 + 16 + MOST;
/// `TCP_MD5SIG_MAXKEYLEN`.
const MOST: usize = 80;
/// `TCP_MD5SIG_EXT`, Linux 4.13; before that a key was for one address.
const EXTENDED: (i32, i32) = (libc::SOL_TCP, 32);
/// `TCP_MD5SIG_FLAG_PREFIX`.
const PREFIX: u8 = 1;
/// `struct tcp_md5sig`: address, flags, prefix, length of the key, device, key.
const ADDRESS: usize = 128;

/// The keys of a socket, as the kernel tells.
pub(crate) fn keys(told: &[u8]) -> Vec<pb::TcpKeyEntry> {
    let key = |one: &[u8]| {
        let is_v4 = libc::c_int::from(one[0]) == libc::AF_INET;
        let length = usize::from(u16::from_ne_bytes([one[2], one[3]]));
        pb::TcpKeyEntry {
            address: one[4..][..if is_v4 { 4 } else { 16 }].to_vec(),
            prefix: one[1].into(),
            key: one[20..][..length.min(MOST)].to_vec(),
        }
    };
    told.chunks_exact(TOLD).map(key).collect()
}

/// The keys of a socket that is made again.
#[derive(Debug)]
pub(crate) struct Keys {
    all: Vec<pb::TcpKeyEntry>,
    is_v6: bool,
}

impl Keys {
    /// Those of a socket of IPv6, or of IPv4.
    pub(crate) fn new(all: &[pb::TcpKeyEntry], is_v6: bool) -> Self {
        let all = all.to_vec();
        Self { all, is_v6 }
    }

    /// What was for one end is for another, which it has become.
    pub(crate) fn of(mut self, old: &SocketAddr, new: &SocketAddr) -> Self {
        let [old, new] = [old, new].map(|end| octets(&end.ip().to_canonical()));
        for key in &mut self.all {
            if key.address == old {
                key.address.clone_from(&new);
            }
        }
        self
    }

    /// Sets them.
    pub(crate) fn give(&self, cx: &mut dyn RestoreCx, fd: i32) -> Result<()> {
        self.set(cx, fd, true)
    }

    /// Takes them away.
    pub(crate) fn take(&self, cx: &mut dyn RestoreCx, fd: i32) -> Result<()> {
        self.set(cx, fd, false)
    }

    fn set(&self, cx: &mut dyn RestoreCx, fd: i32, on: bool) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let mut program = Program::new();
        let mut calls = Vec::new();
        // The kernel tells of the newest first.
        for key in self.all.iter().rev() {
            let bytes = self.encode(key, on)?;
            let length = bytes.len();
            let bytes = program.bytes(bytes);
            calls.push(program.setsockopt(fd, EXTENDED.0, EXTENDED.1, bytes, length));
            program.tolerate();
        }
        let outcome = cx.here().run(&program)?;
        let failed = |errno| match errno {
            Errno::ENOPROTOOPT => Error::unsupported(
                "a TCP socket whose segments are signed (TCP-MD5): this kernel cannot",
                "restore under a kernel with CONFIG_TCP_MD5SIG",
            ),
            errno => Error::Kernel {
                call: "setsockopt(TCP_MD5SIG_EXT)",
                errno,
            },
        };
        calls
            .into_iter()
            .try_for_each(|call| outcome.get(call).map(drop).map_err(failed))
    }

    /// A key without bytes is none any more.
    fn encode(&self, key: &pb::TcpKeyEntry, on: bool) -> Result<Vec<u8>> {
        let broken = || Error::corrupt("files-ext.img", "a key of TCP-MD5");
        let address = match key.address[..] {
            [a, b, c, d] if !self.is_v6 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            [a, b, c, d] => IpAddr::V6(Ipv4Addr::new(a, b, c, d).to_ipv6_mapped()),
            _ => {
                let octets: [u8; 16] = key.address[..].try_into().map_err(|_| broken())?;
                IpAddr::V6(Ipv6Addr::from(octets))
            }
        };
        let secret = if on { &key.key[..] } else { &[] };
        let prefix = u8::try_from(key.prefix).map_err(|_| broken())?;
        let length = u16::try_from(secret.len()).map_err(|_| broken())?;
        if secret.len() > MOST {
            return Err(broken());
        }
        let mut bytes = encode(&SocketAddr::new(address, 0));
        bytes.resize(ADDRESS, 0);
        bytes.extend([PREFIX, prefix]);
        bytes.extend(length.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(secret);
        bytes.resize(ADDRESS + 8 + MOST, 0);
        Ok(bytes)
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(family: i32, prefix: u8, address: &[u8], key: &[u8]) -> Vec<u8> {
        let length = u16::try_from(key.len()).expect("short");
        let mut bytes = vec![u8::try_from(family).expect("a family"), prefix];
        bytes.extend(length.to_ne_bytes());
        bytes.extend(address);
        bytes.resize(20, 0);
        bytes.extend(key);
        bytes.resize(TOLD, 0);
        bytes
    }

    #[test]
    fn keys_are_read_and_written() {
        let all = [
            told(libc::AF_INET, 24, &[10, 0, 0, 0], b"secret"),
            told(libc::AF_INET6, 128, &[9; 16], b"other"),
        ];
        let all = keys(&all.concat());
        assert_eq!(all[0].address, [10, 0, 0, 0]);
        assert_eq!((all[0].prefix, &all[0].key[..]), (24, &b"secret"[..]));
        assert_eq!((all[1].address.len(), &all[1].key[..]), (16, &b"other"[..]));
        let keys = Keys::new(&all, true);
        let bytes = keys.encode(&all[0], true).expect("well formed");
        assert_eq!(bytes.len(), 216);
        // Of a socket of IPv6 it is mapped.
        assert_eq!(
            bytes[8..24],
            Ipv4Addr::new(10, 0, 0, 0).to_ipv6_mapped().octets()
        );
        assert_eq!(bytes[128..130], [PREFIX, 24]);
        assert_eq!(&bytes[136..142], b"secret");
        let none = keys.encode(&all[0], false).expect("well formed");
        assert_eq!(none[130..132], [0, 0]);
        let short = pb::TcpKeyEntry {
            address: vec![1],
            ..all[0].clone()
        };
        assert!(keys.encode(&short, true).is_err());
    }

    #[test]
    fn a_key_follows_who_has_it() {
        let all = keys(&told(libc::AF_INET, 32, &[10, 0, 0, 1], b"k"));
        let end = |text: &str| text.parse::<SocketAddr>().expect("an end");
        let moved = Keys::new(&all, false).of(&end("10.0.0.1:5"), &end("10.0.0.9:5"));
        assert_eq!(moved.all[0].address, [10, 0, 0, 9]);
        let other = Keys::new(&all, false).of(&end("10.0.0.2:5"), &end("10.0.0.9:5"));
        assert_eq!(other.all[0].address, [10, 0, 0, 1]);
    }
}
