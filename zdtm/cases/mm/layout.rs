//! The layout of a process: break, stack, arguments, environment, auxiliary vector, executable, vdso.

use zdtm::{Case, Mapping, PAGE, Result, check, check_eq, fill, proc_text, ret, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("brk", brk),
    Case::new("arguments", arguments),
    Case::new("stack", stack),
    Case::new("vdso", vdso),
    Case::new("aio-ring", aio),
];

/// The break grows on where it was.
fn brk() -> Result<()> {
    // SAFETY: takes no address, or one of the kernel's own.
    let raw = |address: usize| unsafe { zdtm::syscall(libc::SYS_brk, [address, 0, 0, 0, 0, 0]) };
    let before = usize::try_from(raw(0)?)?;
    zdtm::checkpoint()?;
    check_eq!(usize::try_from(raw(0)?)?, before);
    let more = usize::try_from(raw(before + 8 * PAGE)?)?;
    check_eq!(more, before + 8 * PAGE);
    // SAFETY: the eight pages have just been added.
    let new = unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(before), 8 * PAGE)
    };
    fill(new, 1);
    verify(new, 1)
}

/// What /proc shows of the memory the kernel remembers addresses of, and of the executable.
fn arguments() -> Result<()> {
    const FILES: [&str; 2] = ["cmdline", "environ"];
    let before = FILES.map(|name| proc_text("self", name));
    let auxv = std::fs::read("/proc/self/auxv")?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    let release = nix::sys::utsname::uname()?.release().to_owned();
    check!(!auxv.is_empty());
    zdtm::checkpoint()?;
    for (name, before) in FILES.into_iter().zip(before) {
        check_eq!(proc_text("self", name)?, before?, "{name}");
    }
    let after = std::fs::read("/proc/self/auxv")?;
    if after.len() < auxv.len() && nix::sys::utsname::uname()?.release() != release {
        // An older kernel keeps fewer words, the last two of which are its end mark.
        let kept = after.len() - 2 * size_of::<usize>();
        check!(kept >= 16 * 2 * size_of::<usize>());
        check_eq!(after[..kept], auxv[..kept]);
    } else {
        check_eq!(after, auxv);
    }
    check_eq!(std::fs::read_link("/proc/self/exe")?, exe);
    Ok(())
}

/// Content below the stack pointer's frame, and growth far below it.
fn stack() -> Result<()> {
    fn deep(depth: u64) -> Result<u64> {
        let mut frame = [0u8; 8192];
        fill(&mut frame, depth);
        let below = if depth == 0 { 0 } else { deep(depth - 1)? };
        verify(std::hint::black_box(&frame), depth)?;
        Ok(below + 1)
    }
    let mut frame = [0u8; 50_000];
    fill(&mut frame, 1);
    zdtm::checkpoint()?;
    verify(std::hint::black_box(&frame), 1)?;
    check_eq!(deep(400)?, 401);
    Ok(())
}

/// Calls that libc makes without entering the kernel.
fn vdso() -> Result<()> {
    const CLOCKS: [i32; 5] = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_MONOTONIC_RAW,
        libc::CLOCK_MONOTONIC_COARSE,
    ];
    fn now(clock: i32) -> Result<i128> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the time lives through the call.
        ret(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
        Ok(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec))
    }
    fn asked(clock: i32) -> Result<i128> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the time lives through the call.
        ret(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) })?;
        Ok(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec))
    }
    let before = CLOCKS.map(now);
    zdtm::checkpoint()?;
    for (clock, before) in CLOCKS.into_iter().zip(before) {
        let (first, kernel, second) = (now(clock)?, asked(clock)?, now(clock)?);
        let before = before?;
        check!(
            first >= before && first < before + 3_600_000_000_000,
            "clock {clock}: {before}, then {first}"
        );
        // The coarse ones go by ticks.
        check!(
            first - 20_000_000 <= kernel && kernel <= second + 20_000_000,
            "clock {clock}: {first} {kernel} {second}"
        );
    }
    // SAFETY: takes no address.
    check!(unsafe { libc::sched_getcpu() } >= 0);
    Ok(())
}

/// `struct iocb` for a write, as far as it is used here.
#[repr(C)]
#[derive(Default)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_fd: u32,
}

/// A context of kernel AIO with completed events in its ring: they are found, and new requests work.
fn aio() -> Result<()> {
    use std::os::fd::AsRawFd;
    let mut context = 0usize;
    // SAFETY: the word lives through the call.
    let made = unsafe {
        zdtm::syscall(
            libc::SYS_io_setup,
            [16, (&raw mut context).addr(), 0, 0, 0, 0],
        )
    };
    if let Err(error) = made {
        return zdtm::skip(format!("io_setup: {error}"));
    }
    let file = std::fs::File::create(zdtm::dir().join("aio"))?;
    let buffer = Mapping::anonymous(PAGE)?;
    fill(buffer.bytes(), 1);
    let submit = |data: u64| -> Result<()> {
        let control = Control {
            data,
            opcode: 1, // IOCB_CMD_PWRITE
            fd: u32::try_from(file.as_raw_fd())?,
            buffer: buffer.address() as u64,
            bytes: 512,
            offset: i64::try_from(data * 512)?,
            ..Control::default()
        };
        let list = [&raw const control];
        // SAFETY: the request is done when the call returns, as writes to a file's cache are.
        let count = unsafe {
            zdtm::syscall(
                libc::SYS_io_submit,
                [context, 1, list.as_ptr().addr(), 0, 0, 0],
            )
        }?;
        check_eq!(count, 1);
        Ok(())
    };
    let get = || -> Result<[u64; 4]> {
        let mut event = [0u64; 4];
        // SAFETY: room for the one event asked for.
        let count = unsafe {
            zdtm::syscall(
                libc::SYS_io_getevents,
                [context, 1, 1, event.as_mut_ptr().addr(), 0, 0],
            )
        }?;
        check_eq!(count, 1);
        Ok(event)
    };
    submit(1)?;
    submit(2)?;
    submit(3)?;
    check_eq!(get()?[0], 1);
    zdtm::checkpoint()?;
    for data in [2, 3] {
        let event = get()?;
        check_eq!((event[0], event[2]), (data, 512));
    }
    submit(4)?;
    check_eq!(get()?[0], 4);
    check_eq!(file.metadata()?.len(), 5 * 512);
    Ok(())
}
