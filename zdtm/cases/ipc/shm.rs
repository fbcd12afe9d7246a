//! System V shared memory: shmget(2).

use std::io;

use libc::{IPC_CREAT, IPC_EXCL, IPC_PRIVATE, IPC_RMID, IPC_STAT, c_int, shmid_ds};
use zdtm::{Case, Child, PAGE, Result, check, check_eq, fill, ret, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("shm-attached", attached),
    Case::new("shm-removed", removed),
    Case::new("shm-detached", detached),
    Case::new("shm-family", family),
    Case::new("shm-twice", twice),
    Case::new("shm-parts", parts),
    Case::new("shm-unaligned", unaligned),
    Case::new("shm-huge", huge).exclusive(),
    Case::new("shm-owner", owner),
    Case::new("shm-outsider", outsider).refused("a process outside of the tree has attached it"),
];

const SHM_RDONLY: c_int = 0o10000;
const SHM_DEST: u32 = 0o1000;
const SHM_HUGETLB: c_int = 0o4000;
const KEY: i32 = 0x5a44_0001;

fn make(key: i32, size: usize, flags: c_int) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    ret(unsafe { libc::shmget(key, size, flags | IPC_CREAT | IPC_EXCL) })
}

/// Attached for the rest of the program, unless detached.
fn attach(id: c_int, at: usize, flags: c_int) -> io::Result<usize> {
    // SAFETY: at an address of the kernel's choice, or a free one: the kernel does not replace mappings.
    ret(unsafe { libc::shmat(id, at as *const libc::c_void, flags) } as isize)
        .map(|at| at.cast_unsigned())
}

fn detach(at: usize) -> io::Result<()> {
    // SAFETY: nobody uses what was there any more.
    ret(unsafe { libc::shmdt(at as *const libc::c_void) }).map(drop)
}

fn remove(id: c_int) -> io::Result<()> {
    // SAFETY: needs no structure.
    ret(unsafe { libc::shmctl(id, IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

fn stat(id: c_int) -> io::Result<shmid_ds> {
    let mut stat = std::mem::MaybeUninit::<shmid_ds>::zeroed();
    // SAFETY: the structure is large enough, and numbers all through.
    ret(unsafe { libc::shmctl(id, IPC_STAT, stat.as_mut_ptr()) })?;
    // SAFETY: as above.
    Ok(unsafe { stat.assume_init() })
}

fn bytes(at: usize, size: usize) -> &'static mut [u8] {
    // SAFETY: attached for as long as the caller uses it.
    unsafe { std::slice::from_raw_parts_mut(at as *mut u8, size) }
}

fn mode(stat: &shmid_ds) -> u32 {
    u32::from(stat.shm_perm.mode)
}

/// As PostgreSQL has it: a small one with a key, attached by several.
fn attached() -> Result<()> {
    let id = make(KEY, 56, 0o600)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at, 56), 1);
    let before = stat(id)?;
    let child = Child::spawn("child", move || {
        Child::checkpoint();
        verify(bytes(at, 56), 1)?;
        bytes(at, 1)[0] = 0xee;
        Ok(())
    })?;
    zdtm::checkpoint()?;
    let now = stat(id)?;
    check_eq!(now.shm_segsz, 56);
    check_eq!(mode(&now), 0o600);
    check_eq!(now.shm_nattch, 2);
    check_eq!(now.shm_perm.uid, before.shm_perm.uid);
    check_eq!(now.shm_cpid, before.shm_cpid);
    // SAFETY: takes numbers.
    check_eq!(ret(unsafe { libc::shmget(KEY, 0, 0) })?, id);
    verify(bytes(at, 56), 1)?;
    child.finish()?;
    check_eq!(bytes(at, 1)[0], 0xee);
    detach(at)?;
    check_eq!(stat(id)?.shm_nattch, 0);
    Ok(remove(id)?)
}

/// It goes with its last user, who has it still.
fn removed() -> Result<()> {
    let id = make(IPC_PRIVATE, 3 * PAGE, 0o640)?;
    let at = attach(id, 0, 0)?;
    remove(id)?;
    fill(bytes(at, 3 * PAGE), 2);
    zdtm::checkpoint()?;
    verify(bytes(at, 3 * PAGE), 2)?;
    let now = stat(id)?;
    check_eq!(mode(&now), SHM_DEST | 0o640);
    check_eq!(now.shm_nattch, 1);
    let second = attach(id, 0, 0)?;
    verify(bytes(second, 3 * PAGE), 2)?;
    detach(second)?;
    detach(at)?;
    check!(stat(id).is_err(), "nobody has it any more");
    Ok(())
}

/// Nobody has it now, but its maker knows its id.
fn detached() -> Result<()> {
    let id = make(KEY, 5 * PAGE, 0o666)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at + PAGE, PAGE), 3);
    detach(at)?;
    zdtm::checkpoint()?;
    check_eq!(stat(id)?.shm_nattch, 0);
    check_eq!(mode(&stat(id)?), 0o666);
    let at = attach(id, 0, 0)?;
    verify(bytes(at + PAGE, PAGE), 3)?;
    check!(bytes(at, PAGE).iter().all(|byte| *byte == 0));
    detach(at)?;
    Ok(remove(id)?)
}

/// One has it for reading only, one at another place, one not at all.
fn family() -> Result<()> {
    let id = make(IPC_PRIVATE, 4 * PAGE, 0o600)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at, 4 * PAGE), 4);
    let reader = Child::spawn("reader", move || {
        detach(at)?;
        let own = attach(id, 0, SHM_RDONLY)?;
        Child::checkpoint();
        verify(bytes(own, 4 * PAGE), 4)?;
        // SAFETY: mprotect of a mapping of ours that nothing refers to.
        let writable = ret(unsafe { libc::mprotect(own as *mut _, PAGE, libc::PROT_WRITE) });
        check!(writable.is_err(), "it was attached for reading");
        Ok(())
    })?;
    let writer = Child::spawn("writer", move || {
        let own = attach(id, 0, 0)?;
        detach(at)?;
        Child::checkpoint();
        fill(bytes(own + PAGE, PAGE), 44);
        Ok(())
    })?;
    let stranger = Child::spawn("stranger", move || {
        detach(at)?;
        Child::checkpoint();
        let own = attach(id, 0, 0)?;
        verify(bytes(own, PAGE), 4)?;
        Ok(detach(own)?)
    })?;
    zdtm::checkpoint()?;
    check_eq!(stat(id)?.shm_nattch, 3);
    reader.finish()?;
    writer.finish()?;
    stranger.finish()?;
    verify(bytes(at, PAGE), 4)?;
    verify(bytes(at + PAGE, PAGE), 44)?;
    remove(id)?;
    Ok(detach(at)?)
}

/// Twice in one process, the second time for reading.
fn twice() -> Result<()> {
    let id = make(IPC_PRIVATE, 2 * PAGE, 0o600)?;
    let (one, other) = (attach(id, 0, 0)?, attach(id, 0, SHM_RDONLY)?);
    fill(bytes(one, 2 * PAGE), 5);
    zdtm::checkpoint()?;
    verify(bytes(other, 2 * PAGE), 5)?;
    bytes(one + PAGE, 1)[0] = 0x55;
    check_eq!(bytes(other + PAGE, 1)[0], 0x55);
    check_eq!(stat(id)?.shm_nattch, 2);
    remove(id)?;
    detach(one)?;
    Ok(detach(other)?)
}

/// Protected in part, and in part unmapped, where something else is by now.
fn parts() -> Result<()> {
    let page = zdtm::page_size();
    let id = make(IPC_PRIVATE, 8 * page, 0o600)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at, 8 * page), 6);
    // SAFETY: parts of the mapping that nothing refers to.
    unsafe {
        ret(libc::mprotect(
            (at + 2 * page) as *mut _,
            page,
            libc::PROT_READ,
        ))?;
        ret(libc::mprotect(
            (at + 3 * page) as *mut _,
            page,
            libc::PROT_NONE,
        ))?;
        ret(libc::munmap(at as *mut _, page))?;
        ret(libc::munmap((at + 5 * page) as *mut _, page))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let hole = (at + 5 * page) as *mut _;
        check_eq!(libc::mmap(hole, page, prot, flags, -1, 0), hole);
    }
    fill(bytes(at + 5 * page, page), 66);
    let whole = attach(id, 0, 0)?;
    zdtm::checkpoint()?;
    verify(bytes(whole, 8 * page), 6)?;
    verify(bytes(at + 5 * page, page), 66)?;
    for index in [1, 2, 4, 6, 7] {
        let part = bytes(at + index * page, page);
        check!(part == bytes(whole + index * page, page), "page {index}");
    }
    bytes(at + 7 * page, 1)[0] = 0x77;
    check_eq!(bytes(whole + 7 * page, 1)[0], 0x77);
    remove(id)?;
    detach(whole)?;
    // By the address of what is no longer there.
    Ok(detach(at)?)
}

/// Its size is no multiple of a page.
fn unaligned() -> Result<()> {
    let size = 3 * PAGE + 1234;
    let id = make(IPC_PRIVATE, size, 0o600)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at, size), 7);
    zdtm::checkpoint()?;
    verify(bytes(at, size), 7)?;
    check_eq!(stat(id)?.shm_segsz, size);
    remove(id)?;
    Ok(detach(at)?)
}

/// Huge pages.
fn huge() -> Result<()> {
    let Some(size) = zdtm::huge_pages(1)? else {
        return skip("no huge pages");
    };
    let id = make(IPC_PRIVATE, size, SHM_HUGETLB | 0o600)?;
    let at = attach(id, 0, 0)?;
    fill(bytes(at, size), 8);
    zdtm::checkpoint()?;
    verify(bytes(at, size), 8)?;
    let smaps = zdtm::proc_text("self", "smaps")?;
    let page = format!("{} kB", size >> 10);
    let mut sizes = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("KernelPageSize:"));
    check!(sizes.any(|size| size.trim() == page));
    remove(id)?;
    Ok(detach(at)?)
}

/// It belongs to somebody else than its maker.
fn owner() -> Result<()> {
    let id = make(KEY, PAGE, 0o600)?;
    let at = attach(id, 0, 0)?;
    let mut wanted = stat(id)?;
    (wanted.shm_perm.uid, wanted.shm_perm.gid) = (1234, 5678);
    wanted.shm_perm.mode = 0o624;
    // SAFETY: the structure is one.
    ret(unsafe { libc::shmctl(id, libc::IPC_SET, &mut wanted) })?;
    let before = stat(id)?;
    zdtm::checkpoint()?;
    let now = stat(id)?;
    check_eq!((now.shm_perm.uid, now.shm_perm.gid), (1234, 5678));
    check_eq!(mode(&now), 0o624);
    check_eq!(now.shm_perm.cuid, before.shm_perm.cuid);
    check_eq!(now.shm_perm.cgid, before.shm_perm.cgid);
    remove(id)?;
    Ok(detach(at)?)
}

/// Somebody else has it too.
fn outsider() -> Result<()> {
    let id = make(IPC_PRIVATE, PAGE, 0o600)?;
    let at = attach(id, 0, 0)?;
    remove(id)?;
    // An orphan is nobody's child.
    let parent = Child::spawn("parent", move || {
        // SAFETY: one thread, and the child only sleeps.
        if ret(unsafe { libc::fork() })? == 0 {
            // SAFETY: takes a number. It lives for a minute, or until its namespace ends.
            unsafe {
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                libc::setsid();
                libc::sleep(60);
                libc::_exit(0)
            }
        }
        Ok(())
    })?;
    parent.join()?;
    check_eq!(stat(id)?.shm_nattch, 2);
    zdtm::checkpoint()?;
    check_eq!(stat(id)?.shm_nattch, 2);
    Ok(detach(at)?)
}
