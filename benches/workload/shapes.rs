//! State of one kind and of a given amount.

use std::fs::File;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use nix::sys::eventfd::EventFd;
use zdtm::{Child, Mapping, PAGE, Team};

const MIB: usize = 1 << 20;

/// Nothing but what the loader and the runtime brought.
pub(crate) fn minimal() -> anyhow::Result<()> {
    crate::ready()?;
    crate::sleep()
}

/// So many threads beside the main one, asleep.
pub(crate) fn threads(count: usize) -> anyhow::Result<()> {
    let team = Team::start(count, |_, set_up| {
        set_up();
        crate::sleep()
    })?;
    crate::ready()?;
    team.join().map(|_: Vec<()>| ())
}

/// So many mappings of one page each, every page written; every second one is then made read-only, so that they do
/// not merge.
pub(crate) fn mappings(count: usize) -> anyhow::Result<()> {
    let area = Mapping::anonymous(count * PAGE)?;
    zdtm::fill(area.bytes(), 1);
    for index in (0..count).step_by(2) {
        area.part(index * PAGE, PAGE).protect(READ)?;
    }
    crate::ready()?;
    crate::sleep()
}

/// `PROT_READ`.
const READ: i32 = 1;

/// So many children, each with so many MiB of its own.
pub(crate) fn processes(count: usize, mib: usize) -> anyhow::Result<()> {
    for index in 0..count {
        Child::spawn(format!("child {index}"), || {
            let area = Mapping::anonymous(mib * MIB)?;
            zdtm::fill(area.bytes(), index as u64);
            Child::set_up();
            crate::sleep()
        })?;
    }
    crate::ready()?;
    crate::sleep()
}

/// So many MiB, random; or random and zero by turns of 64 KiB, the zeroes written too.
pub(crate) fn memory(mib: usize, half_zero: bool) -> anyhow::Result<()> {
    const TURN: usize = 64 << 10;
    let area = Mapping::anonymous(mib * MIB)?;
    zdtm::fill(area.bytes(), 2);
    if half_zero {
        for zeroes in area.bytes().chunks_mut(TURN).step_by(2) {
            zeroes.fill(0);
        }
    }
    crate::ready()?;
    crate::sleep()
}

/// So many descriptors of one regular file, each opened anew.
pub(crate) fn files(count: usize) -> anyhow::Result<()> {
    std::fs::write("file", "content")?;
    for index in 0..count {
        let file = File::open("file").with_context(|| format!("descriptor {index}"))?;
        // Kept open as long as the process lives.
        let _ = file.into_raw_fd();
    }
    crate::ready()?;
    crate::sleep()
}

/// So many children, each with so many descriptors of four kinds: of ten, three of a regular file, three event
/// counters, a pair and a half of unix sockets, and half a pipe. CRIU 4.1.1 takes 1024 pipes.
pub(crate) fn descriptors(count: usize, each: usize) -> anyhow::Result<()> {
    std::fs::write("file", "content")?;
    for index in 0..count {
        Child::spawn(format!("child {index}"), || {
            // They are kept open as long as the process lives: nobody needs the bare numbers.
            for turn in 0..each * 3 / 10 {
                let file = File::open("file").with_context(|| format!("file {turn}"))?;
                let counter = EventFd::from_value(1)?;
                let _ = (file.into_raw_fd(), OwnedFd::from(counter).into_raw_fd());
            }
            for _ in 0..each * 3 / 20 {
                let (one, other) = UnixStream::pair()?;
                let _ = (one.into_raw_fd(), other.into_raw_fd());
            }
            for _ in 0..each / 20 {
                let (read, write) = nix::unistd::pipe()?;
                let _ = (read.into_raw_fd(), write.into_raw_fd());
            }
            Child::set_up();
            crate::sleep()
        })?;
    }
    crate::ready()?;
    crate::sleep()
}
