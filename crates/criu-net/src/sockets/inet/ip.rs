//! Options of IP for which the image messages have fields.

use std::os::fd::OwnedFd;

use criu_image::pb;
use criu_kind::Result;
use criu_tracee::Program;

use crate::sockets::inet::sort::Sort;
use crate::sockets::message::{number_at, option_at, set_at};

/// `include/uapi/linux/in6.h`, `include/uapi/linux/icmp.h`.
const IPV6_FREEBIND: i32 = 78;
const IPV6_HDRINCL: i32 = 36;
const SOL_RAW: i32 = 255;
const ICMP_FILTER: i32 = 1;
const SOL_ICMPV6: i32 = 58;
const ICMPV6_FILTER: i32 = 1;

fn freebind(sort: &Sort) -> (i32, i32) {
    if sort.is_v6() {
        (libc::SOL_IPV6, IPV6_FREEBIND)
    } else {
        (libc::SOL_IP, libc::IP_FREEBIND)
    }
}

fn header(sort: &Sort) -> (i32, i32) {
    if sort.is_v6() {
        (libc::SOL_IPV6, IPV6_HDRINCL)
    } else {
        (libc::SOL_IP, libc::IP_HDRINCL)
    }
}

/// The filter of message types that raw ICMP sockets have, and its size.
fn filter(sort: &Sort) -> Option<(i32, i32, usize)> {
    match sort.protocol {
        libc::IPPROTO_ICMP if !sort.is_v6() => Some((SOL_RAW, ICMP_FILTER, 4)),
        libc::IPPROTO_ICMPV6 if sort.is_v6() => Some((SOL_ICMPV6, ICMPV6_FILTER, 32)),
        _ => None,
    }
}

/// Reads them. What is as in a new socket is left out.
pub(crate) fn read(fd: &OwnedFd, sort: &Sort) -> Result<pb::IpOptsEntry> {
    let number = |(level, name)| {
        Ok::<_, criu_kind::Error>(number_at(fd, level, name)?.filter(|value| *value != 0))
    };
    let flag = |option| Ok::<_, criu_kind::Error>(number(option)?.map(|_| true));
    let mut entry = pb::IpOptsEntry {
        freebind: flag(freebind(sort))?,
        ..pb::IpOptsEntry::default()
    };
    if sort.is_v6() {
        entry.pktinfo = flag((libc::SOL_IPV6, libc::IPV6_RECVPKTINFO))?;
    } else {
        entry.pktinfo = flag((libc::SOL_IP, libc::IP_PKTINFO))?;
        entry.tos = number((libc::SOL_IP, libc::IP_TOS))?;
        entry.ttl = number((libc::SOL_IP, libc::IP_TTL))?;
    }
    if sort.is_raw() {
        let mut raw = pb::IpOptsRawEntry {
            hdrincl: flag(header(sort))?,
            ..pb::IpOptsRawEntry::default()
        };
        if !sort.is_v6() {
            raw.nodefrag = flag((libc::SOL_IP, libc::IP_NODEFRAG))?;
        }
        if let Some((level, name, size)) = filter(sort) {
            let bytes = option_at(fd, (level, name), size)?.unwrap_or_default();
            let words = bytes.chunks_exact(4);
            raw.icmpv_filter = words
                .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
                .collect();
        }
        entry.raw = Some(raw);
    }
    Ok(entry)
}

/// Adds the calls that let it be bound to an address that is not there yet.
pub(crate) fn before_bind(program: &mut Program, fd: i32, sort: &Sort) {
    // The kernel takes it for IPv6 in both ways; a new address of that is not usable at once.
    set_at(program, fd, freebind(sort), 1);
    program.tolerate();
}

/// Adds the calls that set them.
pub(crate) fn write(program: &mut Program, fd: i32, sort: &Sort, entry: &pb::IpOptsEntry) {
    set_at(program, fd, freebind(sort), entry.freebind().into());
    program.tolerate();
    let pktinfo = if sort.is_v6() {
        (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO)
    } else {
        (libc::SOL_IP, libc::IP_PKTINFO)
    };
    let options = [
        (pktinfo, entry.pktinfo.map(u32::from)),
        ((libc::SOL_IP, libc::IP_TOS), entry.tos),
        ((libc::SOL_IP, libc::IP_TTL), entry.ttl),
    ];
    for (option, value) in options {
        if let Some(value) = value.filter(|value| *value != 0) {
            set_at(program, fd, option, value);
        }
    }
    let Some(raw) = entry.raw.as_ref().filter(|_| sort.is_raw()) else {
        return;
    };
    if raw.nodefrag() {
        set_at(program, fd, (libc::SOL_IP, libc::IP_NODEFRAG), 1);
    }
    if let Some(value) = raw.hdrincl {
        set_at(program, fd, header(sort), value.into());
    }
    if let Some((level, name, size)) = filter(sort)
        && raw.icmpv_filter.len() * 4 == size
    {
        let words = raw.icmpv_filter.iter().flat_map(|word| word.to_ne_bytes());
        let bytes = program.bytes(words.collect::<Vec<u8>>());
        program.setsockopt(fd, level, name, bytes, size);
    }
}
