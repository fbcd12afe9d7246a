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
    Case::new("pipe-closed-end", closed_end),
    Case::new("pipe-many", many),
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
    check_eq!(read(&reader, &mut buffer)?, 0, "end of file once the last writer is gone");
    Ok(())
}

fn size() -> Result<()> {
    let sizes = [4096, 65536, 1 << 20];
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
    let mut bytes = vec![0; 1 << 17];
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

/// With no writer there is an end; with no reader there is EPIPE.
fn closed_end() -> Result<()> {
    let (reader, gone) = pipe()?;
    write(&gone, b"rest")?;
    drop(gone);
    let (gone, writer) = pipe()?;
    drop(gone);
    // SAFETY: ignoring a signal is no code of ours.
    unsafe { nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn) }?;
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
