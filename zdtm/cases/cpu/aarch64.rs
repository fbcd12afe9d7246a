//! Registers of 64-bit ARM: general, flags, SIMD, SVE, control words, thread pointer, keys of pointer authentication.
//!
//! Each test loads registers, waits in its own machine code, where no compiler can use them for anything else, and
//! stores them again. The wait is the futex that [`zdtm::wait`] sleeps on, or a loop that never leaves user mode.

use std::arch::asm;

use zdtm::{Case, Mapping, Result, Team, check, check_eq, fill, proc_text, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("general", general),
    Case::new("general-busy", busy),
    Case::new("flags", flags),
    Case::new("simd", || vectors(simd)),
    Case::new("simd-busy", || vectors(simd_busy)),
    Case::new("fp-control", control),
    Case::new("sve", sve),
    Case::new("sve-length", sve_length),
    Case::new("thread-pointer", thread_pointer),
    Case::new("pointer-authentication", pointer_authentication),
    Case::new("landing-places", landing_places).needs(&["marked places only (BTI)"]),
];

/// Runs on a thread of its own, with a moment to get to its waiting place.
fn in_thread(body: impl Fn(u64) -> Result<()> + Send + Sync + Clone + 'static) -> Result<()> {
    let team = Team::start(2, move |index, set_up| {
        set_up();
        body(1000 + index as u64)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

/// Whether the processor has this ability (AT_HWCAP, AT_HWCAP2).
fn has(kind: libc::c_ulong, bit: u32) -> bool {
    // SAFETY: takes a number.
    unsafe { libc::getauxval(kind) >> bit & 1 == 1 }
}

/// The wait: futex(x0, FUTEX_WAIT_PRIVATE, 0, NULL) until the word is set. Uses x0 to x3, x8; the address is on the
/// stack.
macro_rules! wait {
    () => {
        "22: ldr x0, [sp]
         mov x1, #128
         mov x2, #0
         mov x3, #0
         mov x8, #98
         svc #0
         ldr x0, [sp]
         ldr w0, [x0]
         cbz w0, 22b"
    };
}

/// Saves what the compiler wants back, and the addresses in x0 to x2: word, values, and where they go afterwards.
macro_rules! enter {
    () => {
        "stp x19, x20, [sp, #-16]!
         stp x21, x22, [sp, #-16]!
         stp x23, x24, [sp, #-16]!
         stp x25, x26, [sp, #-16]!
         stp x27, x28, [sp, #-16]!
         stp x29, x30, [sp, #-16]!
         stp x0, x2, [sp, #-16]!"
    };
}

macro_rules! leave {
    () => {
        "add sp, sp, #16
         ldp x29, x30, [sp], #16
         ldp x27, x28, [sp], #16
         ldp x25, x26, [sp], #16
         ldp x23, x24, [sp], #16
         ldp x21, x22, [sp], #16
         ldp x19, x20, [sp], #16"
    };
}

/// Loads x4 to x7 and x9 to x29 from the values at x1.
macro_rules! load {
    () => {
        "ldp x4, x5, [x1]
         ldp x6, x7, [x1, #16]
         ldp x9, x10, [x1, #32]
         ldp x11, x12, [x1, #48]
         ldp x13, x14, [x1, #64]
         ldp x15, x16, [x1, #80]
         ldp x17, x18, [x1, #96]
         ldp x19, x20, [x1, #112]
         ldp x21, x22, [x1, #128]
         ldp x23, x24, [x1, #144]
         ldp x25, x26, [x1, #160]
         ldp x27, x28, [x1, #176]
         ldr x29, [x1, #192]"
    };
}

/// Stores them at x30.
macro_rules! store {
    () => {
        "stp x4, x5, [x30]
         stp x6, x7, [x30, #16]
         stp x9, x10, [x30, #32]
         stp x11, x12, [x30, #48]
         stp x13, x14, [x30, #64]
         stp x15, x16, [x30, #80]
         stp x17, x18, [x30, #96]
         stp x19, x20, [x30, #112]
         stp x21, x22, [x30, #128]
         stp x23, x24, [x30, #144]
         stp x25, x26, [x30, #160]
         stp x27, x28, [x30, #176]
         str x29, [x30, #192]"
    };
}

/// What asm! must be told of the registers below x19.
macro_rules! run {
    ($($line:expr),* ; $before:ident, $after:ident) => {
        asm!(
            $($line),*,
            inout("x0") zdtm::over_word() => _, inout("x1") $before.as_ptr() => _, inout("x2") $after.as_mut_ptr() => _,
            out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _,
            out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            out("x18") _,
        )
    };
}

/// Everything a system call leaves alone.
fn general() -> Result<()> {
    in_thread(|seed| {
        let mut before = [0u64; 25];
        before.fill_with(&mut zdtm::pattern(seed));
        let mut after = [0u64; 25];
        // SAFETY: what the compiler needs is saved around; the wait reads the word and makes a futex call.
        unsafe {
            run!(
                enter!(), load!(), "ldr x30, [x1]", wait!(),
                "cmp x30, x4", "cset x8, ne", // The return address register, too.
                "ldr x30, [sp, #8]", store!(), "cbz x8, 23f", "str xzr, [x30]", "23:", leave!();
                before, after
            );
        }
        check_eq!(after, before);
        Ok(())
    })
}

/// A loop without any system call, so that every register but one has to survive.
fn busy() -> Result<()> {
    in_thread(|seed| {
        let mut before = [0u64; 29];
        before.fill_with(&mut zdtm::pattern(seed));
        let mut after = [0u64; 29];
        // SAFETY: as above; the loop reads the word over and over.
        unsafe {
            run!(
                enter!(), load!(), "ldr x8, [x1, #200]", "ldp x2, x3, [x1, #208]", "ldr x1, [x1, #224]",
                "22: ldr w30, [x0]", "cbz w30, 22b",
                "ldr x30, [sp, #8]", store!(), "str x8, [x30, #200]", "stp x2, x3, [x30, #208]",
                "str x1, [x30, #224]", leave!();
                before, after
            );
        }
        check_eq!(after, before);
        Ok(())
    })
}

/// Negative, zero, carry, overflow, over a wait in user mode.
fn flags() -> Result<()> {
    in_thread(|seed| {
        let wanted: u64 = if seed % 2 == 0 {
            0xa000_0000
        } else {
            0x5000_0000
        };
        let found: u64;
        // SAFETY: reads the word over and over.
        unsafe {
            asm!(
                "msr nzcv, {wanted}",
                "22: ldr {word:w}, [{over}]", "cbz {word:w}, 22b",
                "mrs {found}, nzcv",
                wanted = in(reg) wanted, found = out(reg) found, word = out(reg) _, over = in(reg) zdtm::over_word(),
            );
        }
        check_eq!(found, wanted);
        Ok(())
    })
}

/// A test that loads the 32 registers from a memory, waits, and stores them there again.
fn vectors(body: unsafe fn(*mut u8)) -> Result<()> {
    in_thread(move |seed| {
        let mut memory = [0u8; 16 * 32];
        fill(&mut memory, seed);
        // SAFETY: room for 32 registers of 16 bytes.
        unsafe { body(memory.as_mut_ptr()) };
        verify(&memory, seed)
    })
}

macro_rules! all_vectors {
    ($call:literal) => {
        concat!(
            $call,
            " q0, q1, [{m}]\n",
            $call,
            " q2, q3, [{m}, #32]\n",
            $call,
            " q4, q5, [{m}, #64]\n",
            $call,
            " q6, q7, [{m}, #96]\n",
            $call,
            " q8, q9, [{m}, #128]\n",
            $call,
            " q10, q11, [{m}, #160]\n",
            $call,
            " q12, q13, [{m}, #192]\n",
            $call,
            " q14, q15, [{m}, #224]\n",
            $call,
            " q16, q17, [{m}, #256]\n",
            $call,
            " q18, q19, [{m}, #288]\n",
            $call,
            " q20, q21, [{m}, #320]\n",
            $call,
            " q22, q23, [{m}, #352]\n",
            $call,
            " q24, q25, [{m}, #384]\n",
            $call,
            " q26, q27, [{m}, #416]\n",
            $call,
            " q28, q29, [{m}, #448]\n",
            $call,
            " q30, q31, [{m}, #480]\n"
        )
    };
}

/// Clears the memory, so that what comes out has not just stayed there.
macro_rules! clear {
    () => {
        "mov x1, #504
         24: str xzr, [{m}, x1]
         subs x1, x1, #8
         b.pl 24b"
    };
}

macro_rules! vector_asm {
    ($memory:ident, $wait:expr) => {
        asm!(
            all_vectors!("ldp"), clear!(), "str {word}, [sp, #-16]!", $wait, "add sp, sp, #16", all_vectors!("stp"),
            m = in(reg) $memory, word = in(reg) zdtm::over_word(),
            out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x8") _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
            out("v29") _, out("v30") _, out("v31") _,
        )
    };
}

/// # Safety
/// Room for 32 registers.
unsafe fn simd(memory: *mut u8) {
    // SAFETY: our caller's room; the wait reads the word and makes a futex call.
    unsafe { vector_asm!(memory, wait!()) }
}

/// # Safety
/// Room for 32 registers.
unsafe fn simd_busy(memory: *mut u8) {
    // SAFETY: our caller's room; the loop reads the word.
    unsafe { vector_asm!(memory, "ldr x0, [sp]\n22: ldr w1, [x0]\ncbz w1, 22b") }
}

/// Rounding mode and flush to zero; saturation and the exceptions that have come.
fn control() -> Result<()> {
    in_thread(|seed| {
        let odd = seed % 2 == 1;
        let (control, status): (u64, u64) = if odd {
            (0x00c0_0000, 0x0800_0015)
        } else {
            (0x0340_0000, 0x0000_008a)
        };
        let (found_control, found_status): (u64, u64);
        // SAFETY: both words are put back before the compiler's code goes on.
        unsafe {
            asm!(
                "mrs {saved}, fpcr", "msr fpcr, {control}", "msr fpsr, {status}",
                "str {word}, [sp, #-16]!", wait!(), "add sp, sp, #16",
                "mrs {found_control}, fpcr", "mrs {found_status}, fpsr", "msr fpcr, {saved}", "msr fpsr, xzr",
                saved = out(reg) _, control = in(reg) control, status = in(reg) status,
                found_control = out(reg) found_control, found_status = out(reg) found_status,
                word = in(reg) zdtm::over_word(),
                out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x8") _,
            );
        }
        check_eq!((found_control, found_status), (control, status));
        Ok(())
    })
}

const HWCAP_SVE: u32 = 22;

macro_rules! all_scalable {
    ($call:literal) => {
        concat!(
            $call,
            " z0, [{m}]\n",
            $call,
            " z1, [{m}, #1, mul vl]\n",
            $call,
            " z2, [{m}, #2, mul vl]\n",
            $call,
            " z7, [{m}, #7, mul vl]\n",
            $call,
            " z8, [{m}, #8, mul vl]\n",
            $call,
            " z15, [{m}, #15, mul vl]\n",
            $call,
            " z16, [{m}, #16, mul vl]\n",
            $call,
            " z23, [{m}, #23, mul vl]\n",
            $call,
            " z30, [{m}, #30, mul vl]\n",
            $call,
            " z31, [{m}, #31, mul vl]\n",
            $call,
            " p0, [{p}]\n",
            $call,
            " p1, [{p}, #1, mul vl]\n",
            $call,
            " p7, [{p}, #7, mul vl]\n",
            $call,
            " p14, [{p}, #14, mul vl]\n",
            $call,
            " p15, [{p}, #15, mul vl]\n"
        )
    };
}

/// Scalable vectors and predicates, over a wait in user mode: a system call would clear them.
fn sve() -> Result<()> {
    if !has(libc::AT_HWCAP, HWCAP_SVE) {
        return skip("no SVE");
    }
    in_thread(|seed| {
        let (mut vectors, mut predicates) = (vec![0u8; 256 * 32], vec![0u8; 32 * 16]);
        fill(&mut vectors, seed);
        fill(&mut predicates, seed + 1);
        let (mut vectors_after, mut predicates_after) = (vec![0u8; 256 * 32], vec![0u8; 32 * 16]);
        // SAFETY: the processor has SVE; the memories are as large as its largest registers.
        unsafe {
            asm!(
                ".arch_extension sve",
                all_scalable!("ldr"),
                "22: ldr {word:w}, [{over}]", "cbz {word:w}, 22b",
                "mov {m}, {m2}", "mov {p}, {p2}",
                all_scalable!("str"),
                m = inout(reg) vectors.as_ptr() => _, p = inout(reg) predicates.as_ptr() => _,
                m2 = in(reg) vectors_after.as_mut_ptr(), p2 = in(reg) predicates_after.as_mut_ptr(),
                word = out(reg) _, over = in(reg) zdtm::over_word(),
                out("v0") _, out("v1") _, out("v2") _, out("v7") _, out("v8") _, out("v15") _, out("v16") _,
                out("v23") _, out("v30") _, out("v31") _,
                out("p0") _, out("p1") _, out("p7") _, out("p14") _, out("p15") _,
            );
        }
        let length = vector_length()?;
        for register in [0, 1, 2, 7, 8, 15, 16, 23, 30, 31] {
            let range = register * length..(register + 1) * length;
            check_eq!(vectors_after[range.clone()], vectors[range], "z{register}");
        }
        for register in [0, 1, 7, 14, 15] {
            let range = register * length / 8..(register + 1) * length / 8;
            check_eq!(
                predicates_after[range.clone()],
                predicates[range],
                "p{register}"
            );
        }
        Ok(())
    })
}

const PR_SVE_SET_VL: usize = 50;
const PR_SVE_GET_VL: usize = 51;

/// Bytes of a scalable vector.
fn vector_length() -> Result<usize> {
    // SAFETY: takes a number.
    let found = unsafe { zdtm::syscall(libc::SYS_prctl, [PR_SVE_GET_VL, 0, 0, 0, 0, 0]) }?;
    Ok(usize::try_from(found)? & 0xffff)
}

/// A thread may choose how long its vectors are.
fn sve_length() -> Result<()> {
    if !has(libc::AT_HWCAP, HWCAP_SVE) {
        return skip("no SVE");
    }
    in_thread(|seed| {
        let wanted = if seed % 2 == 0 { 16 } else { 32 };
        // SAFETY: takes a number.
        unsafe { zdtm::syscall(libc::SYS_prctl, [PR_SVE_SET_VL, wanted, 0, 0, 0, 0]) }?;
        let before = vector_length()?;
        zdtm::wait();
        check_eq!(vector_length()?, before);
        Ok(())
    })
}

/// The thread pointer, and with it all that is thread-local.
fn thread_pointer() -> Result<()> {
    thread_local!(static OWN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    fn read() -> u64 {
        let found;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, tpidr_el0", out(reg) found) };
        found
    }
    in_thread(|seed| {
        OWN.set(seed);
        let before = read();
        zdtm::wait();
        check_eq!((read(), OWN.get()), (before, seed));
        Ok(())
    })
}

/// What a pointer is signed with before is what it is signed with after.
fn pointer_authentication() -> Result<()> {
    const HWCAP_PACA: u32 = 30;
    const HWCAP_PACG: u32 = 31;
    if !has(libc::AT_HWCAP, HWCAP_PACA) || !has(libc::AT_HWCAP, HWCAP_PACG) {
        return skip("no pointer authentication");
    }
    fn signed(value: u64) -> [u64; 5] {
        let [mut ia, mut ib, mut da, mut db] = [value; 4];
        let generic: u64;
        // SAFETY: computes on registers; nothing is followed.
        unsafe {
            asm!(
                ".arch_extension pauth",
                "pacia {ia}, {context}", "pacib {ib}, {context}", "pacda {da}, {context}", "pacdb {db}, {context}",
                "pacga {generic}, {value}, {context}",
                ia = inout(reg) ia, ib = inout(reg) ib, da = inout(reg) da, db = inout(reg) db,
                generic = out(reg) generic, value = in(reg) value, context = in(reg) 0x1234_5678_u64,
            );
        }
        [ia, ib, da, db, generic]
    }
    in_thread(|seed| {
        // Several, as two keys may well give one pointer the same few bits.
        let all = || {
            (seed..seed + 8)
                .map(|value| signed(value << 12))
                .collect::<Vec<_>>()
        };
        let before = all();
        check!(
            before.iter().any(|signed| signed[0] != signed[1]),
            "the keys differ"
        );
        zdtm::wait();
        check_eq!(all(), before);
        Ok(())
    })
}

/// Code into which indirect branches may land at marked places only (BTI).
fn landing_places() -> Result<()> {
    const PROT_BTI: i32 = 0x10;
    let protection = libc::PROT_READ | libc::PROT_EXEC | PROT_BTI;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    const HWCAP2_BTI: u32 = 17;
    if !has(libc::AT_HWCAP2, HWCAP2_BTI) {
        return skip("no BTI");
    }
    let mapping = Mapping::new(4096, protection, flags, -1, 0)?;
    let guarded = || -> Result<bool> {
        let smaps = proc_text("self", "smaps")?;
        let start = format!("{:x}-", mapping.address());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find(|line| line.starts_with("VmFlags:"));
        Ok(flags.is_some_and(|flags| flags.contains(" bt")))
    };
    check!(guarded()?);
    zdtm::checkpoint()?;
    check!(guarded()?);
    Ok(())
}
