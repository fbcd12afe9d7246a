//! Pipes: what is in them, how large they are, who holds which end.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe, pipe2, read, write};
use zdtm::{Case, Child, Result, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("pipe", data),
    Case::new("pipe-size", size),
    Case::new("pipe-full", full),
    Case::new("pipe-larger-than-allowed", larger),
    Case::new("pipe-closed-end", closed_end),
    Case::new("pipe-many", many),
    Case::new("pipe-packets", packets).refused("CRIU has no field for the packet mode"),
    Case::new("pipe-reopened", reopened),
    Case::new("pipe-crossed", crossed),
    Case::new("pipe-many-readers", many_readers),
    Case::new("pipe-ring", ring).restless(),
    Case::new("pipe-ping-pong", ping_pong).restless(),
];

fn data() -> Result<()> {
    let (reader, writer) = pipe()?;
    write(&writer, b"in the pipe")?;
    zdtm::checkpoint()?;
    let mut buffer = [0; 64];
    check_eq!(read(&reader, &mut buffer)?, 11);
    check_eq!(&buffer[..11], b"in the pipe");
    write(&writer, b"later")?;
    check_eq!(read(&reader, &mut buffer)?, 5);
    drop(writer);
    check_eq!(
        read(&reader, &mut buffer)?,
        0,
        "end of file once the last writer is gone"
    );
    Ok(())
}

fn size() -> Result<()> {
    let sizes = [i32::try_from(zdtm::page_size())?, 65536, 1 << 20];
    let mut pipes = Vec::new();
    for size in sizes {
        let (reader, writer) = pipe()?;
        check_eq!(fcntl(&reader, FcntlArg::F_SETPIPE_SZ(size))?, size);
        pipes.push((reader, writer, size));
    }
    zdtm::checkpoint()?;
    for (reader, writer, size) in &pipes {
        check_eq!(fcntl(reader, FcntlArg::F_GETPIPE_SZ)?, *size);
        check_eq!(fcntl(writer, FcntlArg::F_GETPIPE_SZ)?, *size);
    }
    Ok(())
}

/// Filled to the last byte, in writes of odd sizes.
fn full() -> Result<()> {
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK)?;
    // More than a pipe has room for: 16 pages, of 64 KiB at most.
    let mut bytes = vec![0; 2 << 20];
    fill(&mut bytes, 5);
    let mut written = 0;
    for length in [1000, 4096, 1].into_iter().cycle() {
        match write(&writer, &bytes[written..written + length]) {
            Ok(count) => written += count,
            Err(Errno::EAGAIN) if length == 1 => break,
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    zdtm::checkpoint()?;
    let mut found = Vec::new();
    let mut buffer = [0; 5000];
    loop {
        match read(&reader, &mut buffer) {
            Ok(count) => found.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    check_eq!(found.len(), written);
    verify(&found[..written & !7], 5)
}

/// Larger than /proc/sys/fs/pipe-max-size, and full: only CAP_SYS_RESOURCE gets one.
fn larger() -> Result<()> {
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK)?;
    let size: i32 = 4 << 20;
    match fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size)) {
        Err(Errno::EPERM) => return zdtm::skip("a pipe of 4 MiB needs CAP_SYS_RESOURCE"),
        got => check_eq!(got?, size),
    }
    let mut bytes = vec![0; 4 << 20];
    fill(&mut bytes, 6);
    let mut written = 0;
    while written < bytes.len() {
        written += write(&writer, &bytes[written..])?;
    }
    check_eq!(write(&writer, b"x"), Err(Errno::EAGAIN));
    zdtm::checkpoint()?;
    check_eq!(fcntl(&reader, FcntlArg::F_GETPIPE_SZ)?, size);
    check_eq!(write(&writer, b"x"), Err(Errno::EAGAIN), "it is full");
    let mut found = vec![0; 4 << 20];
    let mut length = 0;
    while length < found.len() {
        length += read(&reader, &mut found[length..])?;
    }
    check_eq!(read(&reader, &mut [0; 1]), Err(Errno::EAGAIN));
    verify(&found, 6)
}

/// With no writer there is an end; with no reader there is EPIPE.
fn closed_end() -> Result<()> {
    let (reader, gone) = pipe()?;
    write(&gone, b"rest")?;
    drop(gone);
    let (gone, writer) = pipe()?;
    drop(gone);
    // SAFETY: ignoring a signal is no code of ours.
    unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::SIGPIPE,
            nix::sys::signal::SigHandler::SigIgn,
        )
    }?;
    zdtm::checkpoint()?;
    let mut buffer = [0; 16];
    check_eq!(read(&reader, &mut buffer)?, 4);
    check_eq!(&buffer[..4], b"rest");
    check_eq!(read(&reader, &mut buffer)?, 0);
    check_eq!(write(writer.as_fd(), b"x"), Err(Errno::EPIPE));
    Ok(())
}

fn many() -> Result<()> {
    let mut pipes = Vec::new();
    for index in 0..200u32 {
        let (reader, writer) = pipe()?;
        write(&writer, &index.to_ne_bytes())?;
        pipes.push((reader, writer));
    }
    zdtm::checkpoint()?;
    for ((reader, _), index) in pipes.iter().zip(0u32..) {
        let mut buffer = [0; 8];
        check_eq!(read(reader, &mut buffer)?, 4);
        check_eq!(buffer[..4], index.to_ne_bytes());
    }
    Ok(())
}

/// With O_DIRECT each write is one packet, and one read takes one packet.
fn packets() -> Result<()> {
    let (reader, writer) = pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK)?;
    for packet in [&b"one"[..], b"three", b"2"] {
        write(&writer, packet)?;
    }
    zdtm::checkpoint()?;
    let mut buffer = [0; 64];
    for packet in [&b"one"[..], b"three", b"2"] {
        let length = read(&reader, &mut buffer)?;
        check_eq!(&buffer[..length], packet);
    }
    write(&writer, b"a")?;
    write(&writer, b"b")?;
    check_eq!(read(&reader, &mut buffer)?, 1, "still in packets");
    Ok(())
}

/// An end opened again through /proc has flags of its own, and may be for both.
fn reopened() -> Result<()> {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;
    let (reader, writer) = pipe()?;
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let again = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)?;
    let both = OpenOptions::new().read(true).write(true).open(&path)?;
    write(&writer, b"first")?;
    zdtm::checkpoint()?;
    let mut buffer = [0; 16];
    check_eq!(read(&again, &mut buffer)?, 5);
    check_eq!(read(&again, &mut buffer), Err(Errno::EAGAIN));
    write(&both, b"second")?;
    check_eq!(read(&reader, &mut buffer)?, 6);
    check_eq!(fcntl(&reader, FcntlArg::F_GETFL)? & libc::O_NONBLOCK, 0);
    Ok(())
}

/// Each of two processes has the end the other one lacks, of two pipes.
fn crossed() -> Result<()> {
    let (down_reader, down_writer) = pipe()?;
    let (up_reader, up_writer) = pipe()?;
    let ours = [down_writer.as_raw_fd(), up_reader.as_raw_fd()];
    let child = Child::spawn("child", move || {
        for fd in ours {
            nix::unistd::close(fd)?;
        }
        Child::checkpoint();
        let mut buffer = [0; 16];
        let length = read(&down_reader, &mut buffer)?;
        write(&up_writer, &buffer[..length])?;
        drop(up_writer);
        // The parent closes its end, which is the only one.
        check_eq!(read(&down_reader, &mut buffer)?, 0);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    write(&down_writer, b"round")?;
    nix::sys::signal::kill(child.pid(), nix::sys::signal::SIGTERM)?;
    let mut buffer = [0; 16];
    check_eq!(read(&up_reader, &mut buffer)?, 5);
    check_eq!(&buffer[..5], b"round");
    check_eq!(read(&up_reader, &mut buffer)?, 0);
    drop(down_writer);
    child.join()
}

/// Eight processes read from one pipe; together they get everything once.
fn many_readers() -> Result<()> {
    let (reader, writer) = pipe()?;
    let (sum_reader, sum_writer) = pipe()?;
    let parents = [writer.as_raw_fd(), sum_reader.as_raw_fd()];
    let children = (0..8)
        .map(|index| {
            let (reader, sum) = (reader.try_clone()?, sum_writer.try_clone()?);
            Child::spawn(format!("reader {index}"), move || {
                for fd in parents {
                    nix::unistd::close(fd)?;
                }
                Child::set_up();
                let (mut total, mut word) = (0u64, [0; 8]);
                while read(&reader, &mut word)? == 8 {
                    total += u64::from_ne_bytes(word);
                }
                write(&sum, &total.to_ne_bytes())?;
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    drop(sum_writer);
    for value in 1..=1000u64 {
        write(&writer, &value.to_ne_bytes())?;
    }
    drop(writer);
    children.into_iter().try_for_each(Child::join)?;
    let (mut total, mut word) = (0, [0; 8]);
    while read(&sum_reader, &mut word)? == 8 {
        total += u64::from_ne_bytes(word);
    }
    check_eq!(total, 500_500);
    Ok(())
}

/// A token goes round ten processes all the while, and is the same at the end, with one more for each step.
fn ring() -> Result<()> {
    const LENGTH: u64 = 10;
    let (first_in, first_out) = pipe()?;
    let mut previous = first_in;
    let mut children = Vec::new();
    for index in 1..LENGTH {
        let (next, out) = pipe()?;
        let mine = previous;
        let (keep, other) = (
            [mine.as_raw_fd(), out.as_raw_fd()],
            [first_out.as_raw_fd(), next.as_raw_fd()],
        );
        children.push(Child::spawn(format!("member {index}"), || {
            for fd in other.into_iter().filter(|fd| !keep.contains(fd)) {
                nix::unistd::close(fd)?;
            }
            Child::set_up();
            let mut word = [0; 8];
            while read(&mine, &mut word)? == 8 {
                check_eq!(
                    write(&out, &(u64::from_ne_bytes(word) + 1).to_ne_bytes())?,
                    8
                );
            }
            Ok(())
        })?);
        previous = next;
    }
    zdtm::ready()?;
    let (mut rounds, mut word) = (0u64, [0; 8]);
    while !zdtm::over() {
        write(&first_out, &word)?;
        check_eq!(read(&previous, &mut word)?, 8);
        rounds += 1;
        check_eq!(u64::from_ne_bytes(word), rounds * (LENGTH - 1));
    }
    drop(first_out);
    children.into_iter().try_for_each(Child::join)
}

/// Two processes pass a counter back and forth all the while; none may get lost or come twice.
fn ping_pong() -> Result<()> {
    let (child_in, our_out) = pipe()?;
    let (our_in, child_out) = pipe()?;
    let ours = [our_in.as_raw_fd(), our_out.as_raw_fd()];
    let child = Child::spawn("echo", move || {
        for fd in ours {
            nix::unistd::close(fd)?;
        }
        Child::set_up();
        let mut word = [0; 8];
        while read(&child_in, &mut word)? == 8 {
            let next = u64::from_ne_bytes(word) + 1;
            check_eq!(write(&child_out, &next.to_ne_bytes())?, 8);
        }
        Ok(())
    })?;
    zdtm::ready()?;
    let mut count = 0u64;
    let mut word = [0; 8];
    while !zdtm::over() {
        write(&our_out, &count.to_ne_bytes())?;
        check_eq!(read(&our_in, &mut word)?, 8);
        check_eq!(u64::from_ne_bytes(word), count + 1);
        count += 1;
    }
    drop(our_out);
    child.join()
}
