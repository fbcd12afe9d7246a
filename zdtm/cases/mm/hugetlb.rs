//! Huge pages of hugetlbfs: private, shared, of a memfd, of a file.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use zdtm::{Case, Child, Mapping, Result, check, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("hugetlb-private", private).exclusive(),
    Case::new("hugetlb-shared", shared).exclusive(),
    // The kernel keeps private huge pages in a file that nobody sees but in maps; parent and child had the same.
    Case::new("hugetlb-inherited", inherited)
        .exclusive()
        .changes(&["maps"]),
    Case::new("hugetlb-memfd", memfd).exclusive(),
    Case::new("hugetlb-memfd-private", memfd_private).exclusive(),
    Case::new("hugetlb-sealed", sealed).exclusive(),
];

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

macro_rules! pages {
    ($needed:expr) => {
        match zdtm::huge_pages($needed)? {
            Some(size) => size,
            None => return zdtm::skip("no huge pages"),
        }
    };
}

fn map(length: usize, flags: i32, fd: i32) -> Result<Mapping> {
    let anonymous = if fd < 0 {
        libc::MAP_ANONYMOUS | libc::MAP_HUGETLB
    } else {
        0
    };
    Mapping::new(length, READ_WRITE, flags | anonymous, fd, 0)
}

/// Pages with content, one with zeroes, one that was never touched; and the number of them.
fn private() -> Result<()> {
    let huge = pages!(12);
    let memory = map(4 * huge, libc::MAP_PRIVATE, -1)?;
    fill(&mut memory.bytes()[..huge], 1);
    fill(&mut memory.bytes()[2 * huge..3 * huge], 2);
    let guard = map(huge, libc::MAP_PRIVATE, -1)?;
    fill(guard.bytes(), 3);
    guard.protect(libc::PROT_NONE)?;
    zdtm::checkpoint()?;
    verify(&memory.bytes()[..huge], 1)?;
    verify(&memory.bytes()[2 * huge..3 * huge], 2)?;
    check!(memory.bytes()[huge..2 * huge].iter().all(|byte| *byte == 0));
    check!(memory.bytes()[3 * huge..].iter().all(|byte| *byte == 0));
    guard.protect(READ_WRITE)?;
    verify(guard.bytes(), 3)?;
    check_eq!(page_size_of(&memory)?, huge);
    Ok(())
}

/// What smaps says of a mapping.
fn page_size_of(memory: &Mapping) -> Result<usize> {
    let smaps = zdtm::proc_text("self", "smaps")?;
    let start = format!("{:x}-", memory.address());
    let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let size = lines
        .skip(1)
        .find_map(|line| line.strip_prefix("KernelPageSize:"));
    let kilobytes = size.and_then(|size| size.split_whitespace().next());
    Ok(kilobytes.unwrap_or_default().parse::<usize>()? * 1024)
}

fn shared() -> Result<()> {
    let huge = pages!(12);
    let memory = map(3 * huge, libc::MAP_SHARED, -1)?;
    fill(&mut memory.bytes()[..huge], 1);
    fill(&mut memory.bytes()[2 * huge..], 2);
    let maps = || -> Result<String> {
        let maps = zdtm::proc_text("self", "maps")?;
        let start = format!("{:x}-", memory.address());
        let line = maps.lines().find(|line| line.starts_with(&start));
        Ok(line
            .unwrap_or_default()
            .split_whitespace()
            .skip(5)
            .collect())
    };
    let name = maps()?;
    zdtm::checkpoint()?;
    verify(&memory.bytes()[..huge], 1)?;
    verify(&memory.bytes()[2 * huge..], 2)?;
    check!(memory.bytes()[huge..2 * huge].iter().all(|byte| *byte == 0));
    check_eq!(page_size_of(&memory)?, huge);
    check_eq!(maps()?, name);
    Ok(())
}

/// A child sees what its parent writes into the shared part, and not what it writes into the other.
fn inherited() -> Result<()> {
    let huge = pages!(16);
    let memory = std::rc::Rc::new((
        map(2 * huge, libc::MAP_SHARED, -1)?,
        map(huge, libc::MAP_PRIVATE, -1)?,
    ));
    fill(memory.0.bytes(), 5);
    fill(memory.1.bytes(), 6);
    let child = {
        let memory = std::rc::Rc::clone(&memory);
        Child::spawn("child", move || {
            memory.1.bytes()[0] ^= 1;
            Child::checkpoint();
            check_eq!(memory.0.bytes()[huge], 77);
            memory.1.bytes()[0] ^= 1;
            verify(memory.1.bytes(), 6)?;
            memory.0.bytes()[huge] = 78;
            Ok(())
        })?
    };
    zdtm::checkpoint()?;
    verify(memory.0.bytes(), 5)?;
    verify(memory.1.bytes(), 6)?;
    memory.0.bytes()[huge] = 77;
    child.finish()?;
    check_eq!(memory.0.bytes()[huge], 78);
    Ok(())
}

fn new(flags: u32) -> Result<File> {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    let fd = zdtm::ret(unsafe {
        libc::memfd_create(
            c"huge".as_ptr(),
            flags | libc::MFD_HUGETLB | libc::MFD_CLOEXEC,
        )
    })?;
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn memfd() -> Result<()> {
    let huge = pages!(12);
    let file = new(0)?;
    file.set_len(3 * u64::try_from(huge)?)?;
    let memory = map(3 * huge, libc::MAP_SHARED, file.as_raw_fd())?;
    fill(&mut memory.bytes()[..huge], 1);
    fill(&mut memory.bytes()[2 * huge..], 2);
    zdtm::checkpoint()?;
    let again = map(3 * huge, libc::MAP_SHARED, file.as_raw_fd())?;
    for memory in [&memory, &again] {
        verify(&memory.bytes()[..huge], 1)?;
        verify(&memory.bytes()[2 * huge..], 2)?;
        check!(memory.bytes()[huge..2 * huge].iter().all(|byte| *byte == 0));
        check_eq!(page_size_of(memory)?, huge);
    }
    memory.bytes()[5] = 1;
    check_eq!(again.bytes()[5], 1);
    check_eq!(file.metadata()?.len(), 3 * u64::try_from(huge)?);
    Ok(())
}

/// Mapped privately: one page is the file's still, the other is not.
fn memfd_private() -> Result<()> {
    let huge = pages!(12);
    let file = new(0)?;
    file.set_len(2 * u64::try_from(huge)?)?;
    let shared = map(2 * huge, libc::MAP_SHARED, file.as_raw_fd())?;
    fill(shared.bytes(), 3);
    let private = map(2 * huge, libc::MAP_PRIVATE, file.as_raw_fd())?;
    fill(&mut private.bytes()[huge..], 4);
    zdtm::checkpoint()?;
    verify(shared.bytes(), 3)?;
    verify(&private.bytes()[huge..], 4)?;
    shared.bytes()[9] ^= 0xff;
    check_eq!(private.bytes()[9], shared.bytes()[9]);
    Ok(())
}

fn sealed() -> Result<()> {
    let huge = pages!(8);
    let file = new(libc::MFD_ALLOW_SEALING)?;
    file.set_len(u64::try_from(huge)?)?;
    let memory = map(huge, libc::MAP_SHARED, file.as_raw_fd())?;
    fill(memory.bytes(), 8);
    memory.unmap()?;
    let seals = || {
        // SAFETY: takes no address.
        zdtm::ret(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0) })
    };
    let wanted = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: takes no address.
    zdtm::ret(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, wanted) })?;
    zdtm::checkpoint()?;
    check_eq!(seals()?, wanted);
    check!(file.set_len(0).is_err());
    let memory = Mapping::new(huge, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)?;
    verify(memory.bytes(), 8)?;
    Ok(())
}
