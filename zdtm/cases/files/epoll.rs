//! epoll(7): what is watched, for what, with which data.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{pipe, write};
use zdtm::{Case, Child, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("epoll", watches),
    Case::new("epoll-modes", modes),
    Case::new("epoll-nested", nested),
    Case::new("epoll-moved-target", moved_target),
    Case::new("epoll-duplicates", duplicates),
    Case::new("epoll-shared", shared),
    Case::new("epoll-many", many),
    Case::new("epoll-most", most),
];

/// What is ready now, as (data, events), by data.
fn ready(epoll: &Epoll) -> Result<Vec<(u64, EpollFlags)>> {
    let mut events = vec![EpollEvent::empty(); 600];
    let count = epoll.wait(&mut events, EpollTimeout::ZERO)?;
    let mut found: Vec<_> = events[..count]
        .iter()
        .map(|event| (event.data(), event.events()))
        .collect();
    found.sort_by_key(|(data, _)| *data);
    Ok(found)
}

fn new() -> Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}

/// A pipe that is ready before, and an event counter that is ready after.
fn watches() -> Result<()> {
    let epoll = new()?;
    let (reader, writer) = pipe()?;
    let counter = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    epoll.add(
        &reader,
        EpollEvent::new(EpollFlags::EPOLLIN, 0xffff_ffff_1234_5678),
    )?;
    epoll.add(&counter, EpollEvent::new(EpollFlags::EPOLLIN, 2))?;
    write(&writer, b"x")?;
    zdtm::checkpoint()?;
    check_eq!(
        ready(&epoll)?,
        [(0xffff_ffff_1234_5678, EpollFlags::EPOLLIN)]
    );
    counter.write(1)?;
    check_eq!(ready(&epoll)?.len(), 2);
    epoll.delete(&reader)?;
    check_eq!(ready(&epoll)?, [(2, EpollFlags::EPOLLIN)]);
    // And an empty one.
    check_eq!(ready(&new()?)?, []);
    Ok(())
}

/// Once only, and at edges.
fn modes() -> Result<()> {
    let epoll = new()?;
    let (once, once_writer) = pipe()?;
    let (used_up, used_up_writer) = pipe()?;
    let (edge, edge_writer) = pipe()?;
    let add =
        |fd: &OwnedFd, mode, data| epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | mode, data));
    add(&once, EpollFlags::EPOLLONESHOT, 1)?;
    add(&used_up, EpollFlags::EPOLLONESHOT, 2)?;
    add(&edge, EpollFlags::EPOLLET, 3)?;
    write(&used_up_writer, b"x")?;
    check_eq!(ready(&epoll)?, [(2, EpollFlags::EPOLLIN)]);
    zdtm::checkpoint()?;
    check_eq!(
        ready(&epoll)?,
        [],
        "the one that has been reported is switched off"
    );
    write(&once_writer, b"x")?;
    write(&edge_writer, b"x")?;
    check_eq!(
        ready(&epoll)?,
        [(1, EpollFlags::EPOLLIN), (3, EpollFlags::EPOLLIN)]
    );
    check_eq!(ready(&epoll)?, []);
    write(&edge_writer, b"x")?;
    check_eq!(ready(&epoll)?, [(3, EpollFlags::EPOLLIN)]);
    Ok(())
}

/// One that watches another one.
fn nested() -> Result<()> {
    let (outer, inner) = (new()?, new()?);
    let (reader, writer) = pipe()?;
    inner.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    outer.add(&inner.0, EpollEvent::new(EpollFlags::EPOLLIN, 2))?;
    zdtm::checkpoint()?;
    check_eq!(ready(&outer)?, []);
    write(&writer, b"x")?;
    check_eq!(ready(&outer)?, [(2, EpollFlags::EPOLLIN)]);
    check_eq!(ready(&inner)?, [(1, EpollFlags::EPOLLIN)]);
    Ok(())
}

/// The number it was added by is closed; the file lives on under another. It stays watched under the old number.
fn moved_target() -> Result<()> {
    let epoll = new()?;
    let (reader, writer) = pipe()?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
    // SAFETY: the number is free, the result owns it.
    let moved = unsafe { OwnedFd::from_raw_fd(ret(libc::dup2(reader.as_raw_fd(), 300))?) };
    drop(reader);
    zdtm::checkpoint()?;
    write(&writer, b"x")?;
    check_eq!(ready(&epoll)?, [(7, EpollFlags::EPOLLIN)]);
    check_eq!(
        epoll.delete(&moved),
        Err(nix::errno::Errno::ENOENT),
        "not known by its new number"
    );
    Ok(())
}

/// Two files that were watched under one number, one after the other.
fn duplicates() -> Result<()> {
    let epoll = new()?;
    let (first, first_writer) = pipe()?;
    let (second, second_writer) = pipe()?;
    // SAFETY: the numbers are free or replaced on purpose; the results own them.
    let dup_to = |fd: &OwnedFd, number| unsafe { ret(libc::dup2(fd.as_raw_fd(), number)) };
    dup_to(&first, 400)?;
    // SAFETY: just made.
    let number = unsafe { OwnedFd::from_raw_fd(400) };
    epoll.add(&number, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    dup_to(&second, 400)?;
    epoll.add(&number, EpollEvent::new(EpollFlags::EPOLLIN, 2))?;
    zdtm::checkpoint()?;
    write(&first_writer, b"x")?;
    check_eq!(ready(&epoll)?, [(1, EpollFlags::EPOLLIN)]);
    write(&second_writer, b"x")?;
    check_eq!(ready(&epoll)?.len(), 2);
    Ok(())
}

/// One epoll in two processes.
fn shared() -> Result<()> {
    let epoll = new()?;
    let (reader, writer) = pipe()?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    let fd = epoll.0.as_raw_fd();
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        // SAFETY: inherited, and closed with the process.
        let epoll = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let new = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        Epoll(epoll).add(new.as_fd(), EpollEvent::new(EpollFlags::EPOLLOUT, 2))?;
        std::mem::forget(new);
        zdtm::wait();
        Ok(())
    })?;
    zdtm::checkpoint()?;
    write(&writer, b"x")?;
    check_eq!(ready(&epoll)?, [(1, EpollFlags::EPOLLIN)]);
    child.finish()
}

fn many() -> Result<()> {
    let epoll = new()?;
    let mut pipes = Vec::new();
    for data in 0..500 {
        let (reader, writer) = pipe()?;
        epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, data))?;
        if data % 3 == 0 {
            write(&writer, b"x")?;
        }
        pipes.push((reader, writer));
    }
    zdtm::checkpoint()?;
    let wanted: Vec<_> = (0..500)
        .filter(|data| data % 3 == 0)
        .map(|data| (data, EpollFlags::EPOLLIN))
        .collect();
    check!(ready(&epoll)? == wanted);
    Ok(())
}

/// More targets than there are free numbers.
fn most() -> Result<()> {
    let limit = zdtm::descriptors()?;
    let epoll = new()?;
    let mut counters = Vec::new();
    for data in 0..limit * 3 / 4 {
        let counter = EventFd::from_value(u32::from(data % 1000 == 7))?;
        epoll.add(&counter, EpollEvent::new(EpollFlags::EPOLLIN, data.into()))?;
        counters.push(counter);
    }
    zdtm::checkpoint()?;
    let wanted: Vec<_> = (0..limit * 3 / 4)
        .filter(|data| data % 1000 == 7)
        .map(|data| (data.into(), EpollFlags::EPOLLIN))
        .collect();
    check_eq!(ready(&epoll)?, wanted);
    let last = counters.len() - 1;
    counters[last].write(1)?;
    check_eq!(
        ready(&epoll)?.last(),
        Some(&(last as u64, EpollFlags::EPOLLIN))
    );
    Ok(())
}
