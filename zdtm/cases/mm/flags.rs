//! What was said about mappings: advice, locks, names, growth.

use libc::{MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use zdtm::{
    Case, Child, Mapping, PAGE, Result, check, check_eq, fill, proc_text, ret, skip, verify,
};

pub(crate) const CASES: &[Case] = &[
    Case::new("madvise", advice),
    Case::new("wipe-on-fork", wipe_on_fork),
    Case::new("dont-fork", dont_fork),
    Case::new("mlock", mlock),
    Case::new("mlock-onfault", mlock_onfault),
    Case::new("mlockall-future", mlockall),
    Case::new("droppable", droppable).stays("Linux 6.11 made such mappings"),
    Case::new("guard-regions", guard),
    Case::new("grows-down", grows_down),
    Case::new("no-reserve", no_reserve),
    Case::new("anon-names", names),
    Case::new("huge-page-advice", huge),
    Case::new("paged-out", paged_out),
    Case::new("vmas-5000", many),
];

const READ_WRITE: i32 = PROT_READ | PROT_WRITE;
const ANONYMOUS: i32 = MAP_PRIVATE | MAP_ANONYMOUS;

/// The `VmFlags` of the mapping with this address.
fn flags(address: usize) -> Result<String> {
    let text = proc_text("self", "smaps")?;
    let mut inside = false;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if inside {
                return Ok(flags.trim().to_owned());
            }
        } else if let Some((start, rest)) = line.split_once('-')
            && let Ok(start) = usize::from_str_radix(start, 16)
        {
            let end = rest
                .split(' ')
                .next()
                .and_then(|end| usize::from_str_radix(end, 16).ok())
                .unwrap_or(0);
            inside = (start..end).contains(&address);
        }
    }
    zdtm::bail!("no mapping at {address:#x}")
}

fn has(mapping: &Mapping, flag: &str) -> Result<bool> {
    Ok(flags(mapping.address())?
        .split(' ')
        .any(|found| found == flag))
}

/// Each kind of lasting advice, on a mapping of its own; the flags are those of proc_pid_smaps(5).
fn advice() -> Result<()> {
    let kinds = [
        (libc::MADV_SEQUENTIAL, "sr"),
        (libc::MADV_RANDOM, "rr"),
        (libc::MADV_DONTFORK, "dc"),
        (libc::MADV_DONTDUMP, "dd"),
        (libc::MADV_HUGEPAGE, "hg"),
        (libc::MADV_NOHUGEPAGE, "nh"),
        (libc::MADV_MERGEABLE, "mg"),
        (libc::MADV_WIPEONFORK, "wf"),
    ];
    let mut areas = Vec::new();
    for (seed, (advice, flag)) in (0u64..).zip(kinds) {
        let area = Mapping::anonymous(3 * PAGE)?;
        fill(area.bytes(), seed);
        // Some kernels have no huge pages, or no merging.
        if area.advise(advice).is_ok() {
            check!(has(&area, flag)?, "{flag} before");
            areas.push((area, flag, seed));
        }
    }
    zdtm::checkpoint()?;
    for (area, flag, seed) in areas {
        check!(
            has(&area, flag)?,
            "{flag} is lost: {}",
            flags(area.address())?
        );
        verify(area.bytes(), seed)?;
    }
    Ok(())
}

/// The content is there, and a child of the restored process finds zeroes.
fn wipe_on_fork() -> Result<()> {
    let area = Mapping::anonymous(4 * PAGE)?;
    fill(area.bytes(), 1);
    area.advise(libc::MADV_WIPEONFORK)?;
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    Child::spawn("later child", move || {
        check!(area.bytes().iter().all(|byte| *byte == 0), "not wiped");
        Ok(())
    })?
    .join()
}

/// A child made after the restore does not have it; one made before does not either.
fn dont_fork() -> Result<()> {
    let area = Mapping::anonymous(4 * PAGE)?;
    fill(area.bytes(), 1);
    area.advise(libc::MADV_DONTFORK)?;
    let early = Child::spawn("early child", move || {
        Child::checkpoint();
        check!(flags(area.address()).is_err());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    early.finish()?;
    Child::spawn("later child", move || {
        check!(flags(area.address()).is_err());
        Ok(())
    })?
    .join()
}

fn lock(area: &Mapping, flags: u32) -> std::io::Result<()> {
    // SAFETY: it is our own mapping.
    ret(unsafe { libc::mlock2(area.pointer().cast(), area.length(), flags) }).map(drop)
}

fn mlock() -> Result<()> {
    let area = Mapping::anonymous(16 * PAGE)?;
    fill(area.part(0, 4 * PAGE).bytes(), 1);
    lock(&area, 0)?;
    zdtm::checkpoint()?;
    check!(has(&area, "lo")?);
    check_eq!(zdtm::status_field("self", "VmLck")?, "64 kB");
    verify(area.part(0, 4 * PAGE).bytes(), 1)
}

/// Locked as far as it has been touched; the rest stays out of memory.
fn mlock_onfault() -> Result<()> {
    let area = Mapping::anonymous(16 * PAGE)?;
    lock(&area, 1)?; // MLOCK_ONFAULT
    fill(area.part(0, PAGE).bytes(), 1);
    zdtm::checkpoint()?;
    check!(has(&area, "lo")?);
    let mut resident = [0u8; 16];
    // SAFETY: one byte for each page of the area.
    ret(unsafe { libc::mincore(area.pointer().cast(), area.length(), resident.as_mut_ptr()) })?;
    check_eq!(
        resident.iter().map(|page| page & 1).sum::<u8>(),
        1,
        "pages resident"
    );
    verify(area.part(0, PAGE).bytes(), 1)
}

/// A process that wants all future mappings locked still does, and in the same way.
fn mlockall() -> Result<()> {
    let future = |label, flags, on_fault| {
        Child::spawn(label, move || {
            // SAFETY: takes no address.
            ret(unsafe { libc::mlockall(flags) })?;
            Child::checkpoint();
            let area = Mapping::anonymous(4 * PAGE)?;
            check!(has(&area, "lo")?, "a new mapping is not locked");
            // Older kernels have no code for it.
            check_eq!(has(&area, "lf")? || has(&area, "??")?, on_fault);
            Ok(())
        })
    };
    let all = future("locks all", libc::MCL_FUTURE, false)?;
    let touched = future(
        "locks what is touched",
        libc::MCL_FUTURE | libc::MCL_ONFAULT,
        true,
    )?;
    let none = Mapping::anonymous(4 * PAGE)?;
    zdtm::checkpoint()?;
    check!(!has(&none, "lo")? && !has(&Mapping::anonymous(PAGE)?, "lo")?);
    all.finish()?;
    touched.finish()
}

/// Memory the kernel may drop: the mapping has to come back, its content need not.
fn droppable() -> Result<()> {
    const MAP_DROPPABLE: i32 = 8;
    let Ok(area) = Mapping::new(4 * PAGE, READ_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0) else {
        return skip("no MAP_DROPPABLE before Linux 6.11");
    };
    fill(area.bytes(), 1);
    check!(has(&area, "dp")?);
    zdtm::checkpoint()?;
    check!(has(&area, "dp")?, "{}", flags(area.address())?);
    fill(area.bytes(), 2);
    verify(area.bytes(), 2)
}

/// Whether a byte there can be read, without dying of it: the kernel reads it for us.
fn readable(area: &Mapping) -> bool {
    let Ok((_reader, writer)) = nix::unistd::pipe() else {
        return false;
    };
    use std::os::fd::AsRawFd;
    // SAFETY: a bad address is what EFAULT is for.
    unsafe { libc::write(writer.as_raw_fd(), area.pointer().cast(), 1) == 1 }
}

/// Pages that fault without a mapping of their own.
fn guard() -> Result<()> {
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    let area = Mapping::anonymous(32 * PAGE)?;
    fill(area.bytes(), 1);
    let guards = [
        area.part(0, PAGE),
        area.part(7 * PAGE, 3 * PAGE),
        area.part(31 * PAGE, PAGE),
    ];
    for guard in &guards {
        if guard.advise(MADV_GUARD_INSTALL).is_err() {
            return skip("no MADV_GUARD_INSTALL before Linux 6.13");
        }
        check!(!readable(guard));
    }
    let mut whole = vec![0; area.length()];
    fill(&mut whole, 1);
    zdtm::checkpoint()?;
    for page in 0..32 {
        let part = area.part(page * PAGE, PAGE);
        let guarded = matches!(page, 0 | 7..=9 | 31);
        check_eq!(readable(&part), !guarded, "page {page}");
        if !guarded {
            check!(
                part.bytes() == &whole[page * PAGE..(page + 1) * PAGE],
                "page {page}"
            );
        }
    }
    guards[1].advise(MADV_GUARD_REMOVE)?;
    check!(guards[1].bytes().iter().all(|byte| *byte == 0));
    Ok(())
}

/// It has grown before, and grows after.
fn grows_down() -> Result<()> {
    // Room below, found by mapping and unmapping all of it.
    let room = Mapping::anonymous(600 * PAGE)?;
    let top = room.address() + 596 * PAGE;
    room.unmap()?;
    let area = Mapping::at(
        top,
        4 * PAGE,
        READ_WRITE,
        ANONYMOUS | MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE,
        -1,
        0,
    )?;
    let touch = |below: usize, value: u8| {
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(
            area.pointer().expose_provenance() - below * PAGE,
        );
        // SAFETY: the kernel grows the mapping down to there; nothing else is in the room.
        unsafe { pointer.write_volatile(value) };
    };
    let read = |below: usize| {
        let pointer = std::ptr::with_exposed_provenance::<u8>(
            area.pointer().expose_provenance() - below * PAGE,
        );
        // SAFETY: touched before.
        unsafe { pointer.read_volatile() }
    };
    fill(area.bytes(), 1);
    touch(1, 11);
    touch(2, 12);
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)?;
    check_eq!([read(1), read(2)], [11, 12]);
    check!(has(&area, "gd")?, "{}", flags(area.address())?);
    for below in 3..100 {
        touch(below, 13);
    }
    check_eq!(read(99), 13);
    Ok(())
}

fn no_reserve() -> Result<()> {
    let area = Mapping::new(1 << 30, READ_WRITE, ANONYMOUS | MAP_NORESERVE, -1, 0)?;
    fill(area.part(512 << 20, PAGE).bytes(), 1);
    zdtm::checkpoint()?;
    check!(has(&area, "nr")?);
    verify(area.part(512 << 20, PAGE).bytes(), 1)
}

/// Names given by prctl(PR_SET_VMA_ANON_NAME).
fn names() -> Result<()> {
    let area = Mapping::anonymous(4 * PAGE)?;
    let name = |part: &Mapping, name: &std::ffi::CStr| {
        // SAFETY: PR_SET_VMA with an own mapping and a C string.
        ret(unsafe {
            libc::prctl(
                0x5356_4d41,
                0usize,
                part.address(),
                part.length(),
                name.as_ptr(),
            )
        })
    };
    let (first, second) = (area.part(0, PAGE), area.part(2 * PAGE, PAGE));
    if let Err(error) = name(&first, c"a name with blanks") {
        return skip(format!("no names for anonymous memory: {error}"));
    }
    name(&second, c"other")?;
    let line = |part: &Mapping| -> Result<String> {
        let start = format!("{:x}-", part.address());
        let maps = proc_text("self", "maps")?;
        Ok(maps
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap_or_default()
            .to_owned())
    };
    check!(
        line(&first)?.ends_with("[anon:a name with blanks]"),
        "{}",
        line(&first)?
    );
    zdtm::checkpoint()?;
    check!(
        line(&first)?.ends_with("[anon:a name with blanks]"),
        "{}",
        line(&first)?
    );
    check!(
        line(&second)?.ends_with("[anon:other]"),
        "{}",
        line(&second)?
    );
    Ok(())
}

/// Memory in huge pages keeps its content, wherever it is afterwards.
fn huge() -> Result<()> {
    let area = Mapping::anonymous(16 << 20)?;
    if area.advise(libc::MADV_HUGEPAGE).is_err() {
        return skip("no transparent huge pages");
    }
    fill(area.bytes(), 1);
    zdtm::checkpoint()?;
    check!(has(&area, "hg")?);
    verify(area.bytes(), 1)
}

fn paged_out() -> Result<()> {
    if std::fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        return skip("no swap");
    }
    let area = Mapping::anonymous(4 << 20)?;
    fill(area.bytes(), 1);
    area.advise(libc::MADV_PAGEOUT)?;
    zdtm::checkpoint()?;
    verify(area.bytes(), 1)
}

/// Five thousand mappings that cannot be merged.
fn many() -> Result<()> {
    let page = zdtm::page_size();
    let area = Mapping::anonymous(5000 * page)?;
    for index in (0..5000).step_by(2) {
        let part = area.part(index * page, page);
        fill(part.bytes(), index as u64);
        part.protect(PROT_READ)?;
    }
    zdtm::checkpoint()?;
    for index in (0..5000).step_by(2) {
        verify(area.part(index * page, page).bytes(), index as u64)?;
    }
    Ok(())
}
