//! The functions of the vdso, called at the addresses that they had before the dump, as libc calls them.

use std::mem::MaybeUninit;

use object::{Object, ObjectSymbol};
use zdtm::{Case, Context, Result, check, check_eq, proc_text, skip};

pub(crate) const CASES: &[Case] = &[Case::new("vdso-functions", functions)];

/// By its names on all machines.
struct Function {
    names: &'static [&'static str],
}

const CLOCK_GETTIME: Function = Function {
    names: &["__vdso_clock_gettime", "__kernel_clock_gettime"],
};
const GETTIMEOFDAY: Function = Function {
    names: &["__vdso_gettimeofday", "__kernel_gettimeofday"],
};
const TIME: Function = Function {
    names: &["__vdso_time"],
};
const GETCPU: Function = Function {
    names: &["__vdso_getcpu", "__kernel_getcpu"],
};

impl Function {
    /// Where it is now; nothing if this machine's vdso has none.
    fn find(&self, base: usize, image: &object::File<'_>) -> Result<Option<usize>> {
        let mut symbols = image.dynamic_symbols();
        let Some(symbol) = symbols.find(|symbol| {
            symbol.is_definition() && symbol.name().is_ok_and(|name| self.names.contains(&name))
        }) else {
            return Ok(None);
        };
        let offset = usize::try_from(symbol.address())?;
        check!(offset > 0, "{} is nowhere", self.names[0]);
        Ok(Some(base + offset))
    }
}

/// Seconds and a fraction, as two words.
type Time = [libc::c_long; 2];

fn functions() -> Result<()> {
    let Some((base, bytes)) = vdso()? else {
        return skip("no vdso");
    };
    let image = object::File::parse(&*bytes)?;
    let find = |function: Function| function.find(base, &image);
    let (clock_gettime, gettimeofday) = (find(CLOCK_GETTIME)?, find(GETTIMEOFDAY)?);
    let (time, getcpu) = (find(TIME)?, find(GETCPU)?);
    check!(
        clock_gettime.is_some() || gettimeofday.is_some(),
        "a vdso with no clock"
    );
    let look = || -> Result<()> {
        if let Some(at) = clock_gettime {
            for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC] {
                // SAFETY: the address of this function, by its name in the vdso, which nobody has unmapped.
                let call: extern "C" fn(libc::c_int, *mut Time) -> libc::c_int =
                    unsafe { std::mem::transmute(at) };
                let found = filled(|time| call(clock, time))?;
                near(seconds(clock)?, found[0])?;
            }
        }
        if let Some(at) = gettimeofday {
            // SAFETY: as above.
            let call: extern "C" fn(*mut Time, usize) -> libc::c_int =
                unsafe { std::mem::transmute(at) };
            near(
                seconds(libc::CLOCK_REALTIME)?,
                filled(|time| call(time, 0))?[0],
            )?;
        }
        if let Some(at) = time {
            // SAFETY: as above.
            let call: extern "C" fn(usize) -> libc::c_long = unsafe { std::mem::transmute(at) };
            near(seconds(libc::CLOCK_REALTIME)?, call(0))?;
        }
        if let Some(at) = getcpu {
            // SAFETY: as above.
            let call: extern "C" fn(*mut libc::c_uint, usize, usize) -> libc::c_int =
                unsafe { std::mem::transmute(at) };
            let mut cpu = libc::c_uint::MAX;
            check_eq!(call(&raw mut cpu, 0, 0), 0);
            check!(cpu < 4096, "processor {cpu}");
        }
        Ok(())
    };
    look()?;
    zdtm::checkpoint()?;
    look()
}

/// Where the vdso is and what is in it.
fn vdso() -> Result<Option<(usize, Vec<u8>)>> {
    let maps = proc_text("self", "maps")?;
    let Some(line) = maps.lines().find(|line| line.ends_with("[vdso]")) else {
        return Ok(None);
    };
    let (start, rest) = line.split_once('-').context("a range")?;
    let (end, _) = rest.split_once(' ').context("a range")?;
    let (start, end) = (
        usize::from_str_radix(start, 16)?,
        usize::from_str_radix(end, 16)?,
    );
    // SAFETY: the kernel has mapped it readable, and it does not change while we copy it.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(start), end - start)
    };
    Ok(Some((start, bytes.to_vec())))
}

fn filled(call: impl FnOnce(*mut Time) -> libc::c_int) -> Result<Time> {
    let mut time = MaybeUninit::<Time>::zeroed();
    check_eq!(call(time.as_mut_ptr()), 0);
    // SAFETY: words, which were zero at least.
    Ok(unsafe { time.assume_init() })
}

/// The kernel's own answer.
fn seconds(clock: libc::c_int) -> Result<libc::c_long> {
    let time = filled(|time| {
        // SAFETY: the time lives through the call.
        i32::try_from(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) }).unwrap_or(-1)
    })?;
    Ok(time[0])
}

/// The kernel was asked a moment before.
fn near(asked: libc::c_long, found: libc::c_long) -> Result<()> {
    check!(
        asked <= found + 1 && found <= asked + 20,
        "{found}, when the kernel says {asked}"
    );
    Ok(())
}
