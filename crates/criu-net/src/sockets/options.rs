//! Options that every socket has: `SOL_SOCKET` of socket(7).
//!
//! Not preserved: eBPF filters (refused), what has no field in the image message: time stamping, busy polling,
//! `SO_LOCK_FILTER`.

use std::os::fd::AsFd;

use criu_image::pb;
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::Program;
use nix::errno::Errno;

use crate::sockets::message::{ask, number, option, set};

/// `include/uapi/asm-generic/socket.h`; the same on every machine, as all new ones are.
const SO_BUF_LOCK: i32 = 72;
/// `SO_GET_FILTER`.
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;
const WORD: usize = size_of::<usize>();
/// `struct timeval` with the machine's own words.
const TIMEVAL: usize = 2 * WORD;

fn must(fd: impl AsFd, name: i32, call: &'static str) -> Result<u32> {
    number(fd, name, call)?.ok_or(Error::Kernel {
        call,
        errno: Errno::ENOPROTOOPT,
    })
}

/// Reads the options of a socket.
pub(crate) fn read(fd: impl AsFd) -> Result<pb::SkOptsEntry> {
    let fd = fd.as_fd();
    let flag = |name, call| Ok::<_, Error>(number(fd, name, call)?.map(|value| value != 0));
    let (snd_sec, snd_usec) = time(fd, libc::SO_SNDTIMEO, "getsockopt(SO_SNDTIMEO)")?;
    let (rcv_sec, rcv_usec) = time(fd, libc::SO_RCVTIMEO, "getsockopt(SO_RCVTIMEO)")?;
    Ok(pb::SkOptsEntry {
        so_sndbuf: must(fd, libc::SO_SNDBUF, "getsockopt(SO_SNDBUF)")?,
        so_rcvbuf: must(fd, libc::SO_RCVBUF, "getsockopt(SO_RCVBUF)")?,
        so_snd_tmo_sec: snd_sec,
        so_snd_tmo_usec: snd_usec,
        so_rcv_tmo_sec: rcv_sec,
        so_rcv_tmo_usec: rcv_usec,
        reuseaddr: flag(libc::SO_REUSEADDR, "getsockopt(SO_REUSEADDR)")?,
        so_priority: number(fd, libc::SO_PRIORITY, "getsockopt(SO_PRIORITY)")?,
        so_rcvlowat: number(fd, libc::SO_RCVLOWAT, "getsockopt(SO_RCVLOWAT)")?,
        // It takes a privilege to set it.
        so_mark: number(fd, libc::SO_MARK, "getsockopt(SO_MARK)")?.filter(|mark| *mark != 0),
        so_passcred: flag(libc::SO_PASSCRED, "getsockopt(SO_PASSCRED)")?,
        so_passsec: flag(libc::SO_PASSSEC, "getsockopt(SO_PASSSEC)")?,
        so_dontroute: flag(libc::SO_DONTROUTE, "getsockopt(SO_DONTROUTE)")?,
        so_no_check: flag(libc::SO_NO_CHECK, "getsockopt(SO_NO_CHECK)")?,
        so_bound_dev: device(fd)?,
        so_filter: filter(fd)?,
        so_reuseport: flag(libc::SO_REUSEPORT, "getsockopt(SO_REUSEPORT)")?,
        so_broadcast: flag(libc::SO_BROADCAST, "getsockopt(SO_BROADCAST)")?,
        so_keepalive: flag(libc::SO_KEEPALIVE, "getsockopt(SO_KEEPALIVE)")?,
        so_oobinline: number(fd, libc::SO_OOBINLINE, "getsockopt(SO_OOBINLINE)")?,
        so_linger: linger(fd)?,
        so_buf_lock: number(fd, SO_BUF_LOCK, "getsockopt(SO_BUF_LOCK)")?,
        ..pb::SkOptsEntry::default()
    })
}

/// Adds the calls that set the options of a socket that has those of a new one. `SO_REUSEADDR` and
/// `SO_REUSEPORT` are not among them: what they mean depends on when they are set.
pub(crate) fn write(program: &mut Program, fd: i32, options: &pb::SkOptsEntry) {
    buffers(program, fd, options.so_sndbuf, options.so_rcvbuf);
    lock(program, fd, options);
    others(program, fd, options);
}

/// Adds the call that says which sizes were set by the program: after [`buffers`].
pub(crate) fn lock(program: &mut Program, fd: i32, options: &pb::SkOptsEntry) {
    if let Some(lock) = options.so_buf_lock {
        set(program, fd, SO_BUF_LOCK, lock);
    }
}

/// The sizes of the buffers of a new unix socket.
pub(crate) fn sizes(cx: &mut dyn RestoreCx) -> Result<(u32, u32)> {
    let mut program = Program::new();
    let fd = program.socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
    let mut ask = |name| {
        let value = program.room(4);
        let length = program.in_out(4u32.to_ne_bytes());
        program.getsockopt(fd, libc::SOL_SOCKET, name, value, length);
        value
    };
    let both = [libc::SO_SNDBUF, libc::SO_RCVBUF].map(&mut ask);
    program.close(fd);
    let outcome = cx.here().run(&program)?;
    let word = |blob| outcome.bytes(blob).try_into().map_or(0, u32::from_ne_bytes);
    Ok((word(both[0]), word(both[1])))
}

/// Adds the calls that set all options but the sizes of the buffers.
pub(crate) fn others(program: &mut Program, fd: i32, options: &pb::SkOptsEntry) {
    let numbers = [
        (libc::SO_PRIORITY, options.so_priority.filter(|it| *it != 0)),
        (libc::SO_RCVLOWAT, options.so_rcvlowat.filter(|it| *it > 1)),
        (libc::SO_MARK, options.so_mark),
        (
            libc::SO_OOBINLINE,
            options.so_oobinline.filter(|it| *it != 0),
        ),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            set(program, fd, name, value);
        }
    }
    let flags = [
        (libc::SO_PASSCRED, options.so_passcred),
        (libc::SO_PASSSEC, options.so_passsec),
        (libc::SO_DONTROUTE, options.so_dontroute),
        (libc::SO_NO_CHECK, options.so_no_check),
        (libc::SO_BROADCAST, options.so_broadcast),
        (libc::SO_KEEPALIVE, options.so_keepalive),
    ];
    for (name, value) in flags {
        if value == Some(true) {
            set(program, fd, name, 1);
        }
    }
    if let Some(seconds) = options.so_linger {
        let words = [1u32.to_ne_bytes(), seconds.to_ne_bytes()].concat();
        let linger = program.bytes(words);
        program.setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger, 8);
    }
    let times = [
        (
            libc::SO_SNDTIMEO,
            options.so_snd_tmo_sec,
            options.so_snd_tmo_usec,
        ),
        (
            libc::SO_RCVTIMEO,
            options.so_rcv_tmo_sec,
            options.so_rcv_tmo_usec,
        ),
    ];
    for (name, sec, usec) in times {
        if (sec, usec) != (0, 0) {
            let time =
                program.bytes([&sec.to_ne_bytes()[low()], &usec.to_ne_bytes()[low()]].concat());
            program.setsockopt(fd, libc::SOL_SOCKET, name, time, TIMEVAL);
        }
    }
    if let Some(device) = &options.so_bound_dev {
        let length = device.len();
        let device = program.bytes(device.clone());
        program.setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device, length);
    }
    if !options.so_filter.is_empty() {
        let code = options.so_filter.iter().flat_map(|one| {
            let [high, low, jt, jf, word @ ..] = one.to_be_bytes();
            let code = u16::from_be_bytes([high, low]).to_ne_bytes();
            let word = u32::from_be_bytes(word).to_ne_bytes();
            [&code[..], &[jt, jf], &word].concat()
        });
        let code = program.bytes(code.collect::<Vec<u8>>());
        // `struct sock_fprog`: a short, padded, and an address.
        let mut words = vec![0; 2 * WORD];
        let count = u16::try_from(options.so_filter.len()).unwrap_or(u16::MAX);
        words[..2].copy_from_slice(&count.to_ne_bytes());
        let filter = program.bytes(words);
        program.link(filter, WORD, code);
        program.setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            filter,
            2 * WORD,
        );
    }
}

/// Adds the calls that set the sizes of the buffers. The kernel doubles what it is given; beyond its limit it
/// takes a privilege.
pub(crate) fn buffers(program: &mut Program, fd: i32, send: u32, receive: u32) {
    let sizes = [
        (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, send),
        (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, receive),
    ];
    for (name, force, size) in sizes {
        set(program, fd, name, size / 2);
        set(program, fd, force, size / 2);
        program.tolerate();
    }
}

/// Which bytes of a 64-bit number are the machine's word.
fn low() -> std::ops::Range<usize> {
    if cfg!(target_endian = "little") {
        0..WORD
    } else {
        8 - WORD..8
    }
}

fn time(fd: impl AsFd, name: i32, call: &'static str) -> Result<(u64, u64)> {
    let Some(bytes) = option(fd, name, call, TIMEVAL)? else {
        return Ok((0, 0));
    };
    let word = |at: usize| {
        let mut word = [0; WORD];
        word.copy_from_slice(&bytes[at..at + WORD]);
        usize::from_ne_bytes(word) as u64
    };
    Ok((word(0), word(WORD)))
}

fn linger(fd: impl AsFd) -> Result<Option<u32>> {
    let bytes = option(fd, libc::SO_LINGER, "getsockopt(SO_LINGER)", 8)?;
    Ok(bytes.and_then(|bytes| {
        let on = bytes[..4] != [0; 4];
        let mut seconds = [0; 4];
        seconds.copy_from_slice(&bytes[4..]);
        on.then(|| u32::from_ne_bytes(seconds))
    }))
}

/// The name of the device it is bound to, without its NUL.
fn device(fd: impl AsFd) -> Result<Option<Vec<u8>>> {
    const IFNAMSIZ: usize = 16;
    let name = option(
        fd,
        libc::SO_BINDTODEVICE,
        "getsockopt(SO_BINDTODEVICE)",
        IFNAMSIZ,
    )?;
    let name = name.map(|name| name.split(|byte| *byte == 0).next().unwrap_or(&[]).to_vec());
    Ok(name.filter(|name| !name.is_empty()))
}

/// A classic filter, an instruction a number.
fn filter(fd: impl AsFd) -> Result<Vec<u64>> {
    let fd = fd.as_fd();
    let failed = |errno| match errno {
        Errno::EACCES => Error::unsupported(
            "a socket with an eBPF filter",
            "detach the filter before the dump",
        ),
        errno => Error::Kernel {
            call: "getsockopt(SO_GET_FILTER)",
            errno,
        },
    };
    // Without room it only counts.
    let (_, count) = ask(fd, SO_GET_FILTER, 0, 0)?.map_err(failed)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let (code, _) = ask(fd, SO_GET_FILTER, count as usize * 8, count)?.map_err(failed)?;
    let instructions = code.chunks_exact(8).map(|one| {
        // `struct sock_filter`: a short, two bytes, a word; images have them from high to low.
        let code = u16::from_ne_bytes([one[0], one[1]]);
        let word = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
        u64::from(code) << 48 | u64::from(one[2]) << 40 | u64::from(one[3]) << 32 | u64::from(word)
    });
    Ok(instructions.collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use std::os::fd::AsRawFd;

    use criu_tracee::{Local, Site};

    use super::*;

    #[test]
    fn options_come_back() {
        let (one, other) = UnixDatagram::pair().expect("a pair");
        one.set_read_timeout(Some(Duration::from_millis(1500)))
            .expect("a timeout");
        let mut program = Program::new();
        for (name, value) in [
            (libc::SO_SNDBUF, 10_000),
            (libc::SO_PASSCRED, 1),
            (libc::SO_PRIORITY, 3),
            (libc::SO_KEEPALIVE, 1),
        ] {
            set(&mut program, one.as_raw_fd(), name, value);
        }
        // `BPF_RET | BPF_K`: all of it.
        let accept = 0x0006 << 48 | 0xffff_u64;
        let options = pb::SkOptsEntry {
            so_filter: vec![accept],
            so_linger: Some(7),
            so_sndbuf: 20_000,
            so_rcvbuf: 30_000,
            ..pb::SkOptsEntry::default()
        };
        let mut more = Program::new();
        write(&mut more, one.as_raw_fd(), &options);
        Local.run(&program).expect("options");
        Local.run(&more).expect("options");
        let first = read(&one).expect("options");
        assert_eq!((first.so_passcred, first.so_linger), (Some(true), Some(7)));
        assert_eq!((first.so_rcv_tmo_sec, first.so_rcv_tmo_usec), (1, 500_000));
        assert_eq!(first.so_filter, [accept]);
        let mut program = Program::new();
        write(&mut program, other.as_raw_fd(), &first);
        Local.run(&program).expect("options");
        assert_eq!(read(&other).expect("options"), first);
    }
}
