//! Registers of 32-bit ARM: general, flags, VFP and NEON, thread pointer; ARM and Thumb code.
//!
//! Each test loads registers, waits in its own machine code, where no compiler can use them for anything else, and
//! stores them again. The wait is the futex that [`zdtm::wait`] sleeps on, or a loop that never leaves user mode.

use std::arch::asm;

use zdtm::{Case, Result, Team, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("general", general),
    Case::new("general-busy", busy),
    Case::new("flags", flags),
    Case::new("thumb", thumb),
    Case::new("neon", || vectors(neon)),
    Case::new("neon-busy", || vectors(neon_busy)),
    Case::new("fp-control", control),
    Case::new("thread-pointer", thread_pointer),
];

/// Runs on a thread of its own, with a moment to get to its waiting place.
fn in_thread(body: impl Fn(u32) -> Result<()> + Send + Sync + Clone + 'static) -> Result<()> {
    let team = Team::start(2, move |index, set_up| {
        set_up();
        body(1000 + u32::try_from(index)?)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

fn pattern(seed: u32) -> impl FnMut() -> u32 {
    let mut next = zdtm::pattern(seed.into());
    move || {
        let [a, b, c, d, ..] = next().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// The wait: futex(r0, FUTEX_WAIT_PRIVATE, 0, NULL) until the word is set. Uses r0 to r3, r7; the address is on the
/// stack.
macro_rules! wait {
    () => {
        "22: ldr r0, [sp]
         mov r1, #128
         mov r2, #0
         mov r3, #0
         mov r7, #240
         svc #0
         ldr r0, [sp]
         ldr r0, [r0]
         cmp r0, #0
         beq 22b"
    };
}

/// Everything a system call leaves alone.
fn general() -> Result<()> {
    in_thread(|seed| {
        let mut before = [0u32; 9];
        before.fill_with(pattern(seed));
        let mut after = [0u32; 9];
        // SAFETY: what the compiler needs is saved around; the wait reads the word and makes a futex call.
        unsafe {
            asm!(
                "push {{r4-r11}}", "push {{r0, r2}}",
                "mov lr, r1", "ldmia lr!, {{r4-r6, r8-r12}}", "ldr lr, [lr]",
                wait!(),
                "ldr r0, [sp, #4]", "stmia r0!, {{r4-r6, r8-r12}}", "str lr, [r0]",
                "add sp, sp, #8", "pop {{r4-r11}}",
                inout("r0") zdtm::over_word() => _, inout("r1") before.as_ptr() => _,
                inout("r2") after.as_mut_ptr() => _, out("r3") _, out("r12") _, out("lr") _,
            );
        }
        check_eq!(after, before);
        Ok(())
    })
}

/// A loop without any system call, so that every register but the address and the word has to survive.
fn busy() -> Result<()> {
    in_thread(|seed| {
        let mut before = [0u32; 13];
        before.fill_with(pattern(seed));
        let mut after = [0u32; 13];
        // SAFETY: as above; the loop reads the word over and over.
        unsafe {
            asm!(
                "push {{r4-r11}}", "push {{r0, r2}}",
                "mov lr, r1", "ldmia lr, {{r1-r12}}",
                "22: ldr lr, [r0]", "cmp lr, #0", "beq 22b",
                "ldr lr, [sp, #4]", "stmia lr, {{r1-r12}}",
                "add sp, sp, #8", "pop {{r4-r11}}",
                inout("r0") zdtm::over_word() => _, inout("r1") before.as_ptr() => _,
                inout("r2") after.as_mut_ptr() => _, out("r3") _, out("r12") _, out("lr") _,
            );
        }
        check_eq!(after[..12], before[..12]);
        Ok(())
    })
}

/// Negative, zero, carry, overflow, saturation, and the four of parallel arithmetic, over a wait in user mode.
fn flags() -> Result<()> {
    in_thread(|seed| {
        let wanted: u32 = if seed % 2 == 0 {
            0xa805_0000
        } else {
            0x500a_0000
        };
        let found: u32;
        // SAFETY: reads the word over and over; subtraction without flags and a loop by the register itself.
        unsafe {
            asm!(
                "msr apsr_nzcvqg, {wanted}",
                // Neither adding nor loading into the program counter changes flags: two words on, or back.
                "22: ldr {word}, [{over}]", "rsb {word}, {word}, #1", "sub pc, pc, {word}, lsl #4", "nop",
                "mrs {found}, cpsr",
                wanted = in(reg) wanted, found = out(reg) found, word = out(reg) _, over = in(reg) zdtm::over_word(),
            );
        }
        check_eq!(found & 0xf80f_0000, wanted);
        Ok(())
    })
}

/// Thumb code, most of the time within a block of conditional instructions that do nothing.
fn thumb() -> Result<()> {
    in_thread(|_| {
        let count: u32;
        // SAFETY: goes to Thumb code and comes back; reads the word over and over.
        unsafe {
            asm!(
                "mov r1, #0", "blx 25f", "b 26f",
                ".thumb", ".balign 4",
                "25: movs r2, #0", "cmp r2, #0",
                "itttt ne", "addne r1, #1", "addne r1, #1", "addne r1, #1", "addne r1, #1",
                "itttt ne", "addne r1, #1", "addne r1, #1", "addne r1, #1", "addne r1, #1",
                "itttt ne", "addne r1, #1", "addne r1, #1", "addne r1, #1", "addne r1, #1",
                "ldr r2, [r0]", "cmp r2, #0", "beq 25b", "bx lr",
                ".arm", ".balign 4", "26:",
                in("r0") zdtm::over_word(), out("r1") count, out("r2") _, out("lr") _,
            );
        }
        check_eq!(count, 0, "instructions that must not run have run");
        Ok(())
    })
}

/// A test that loads the 32 registers from a memory, waits, and stores them there again.
fn vectors(body: unsafe fn(*mut u8)) -> Result<()> {
    in_thread(move |seed| {
        let mut memory = [0u8; 8 * 32];
        fill(&mut memory, seed.into());
        // SAFETY: room for 32 registers of 8 bytes.
        unsafe { body(memory.as_mut_ptr()) };
        verify(&memory, seed.into())
    })
}

/// Loads D0 to D31, clears the memory, so that what comes out has not just stayed there, waits, and stores them.
macro_rules! vector_asm {
    ($memory:ident, $wait:expr) => {
        asm!(
            ".fpu neon",
            "push {{r4-r7}}", "push {{r0, r1}}",
            "vldmia r1!, {{d0-d15}}", "vldmia r1, {{d16-d31}}", "ldr r1, [sp, #4]",
            "mov r2, #252", "mov r3, #0", "24: str r3, [r1, r2]", "subs r2, r2, #4", "bpl 24b",
            $wait,
            "ldr r1, [sp, #4]", "vstmia r1!, {{d0-d15}}", "vstmia r1, {{d16-d31}}",
            "add sp, sp, #8", "pop {{r4-r7}}",
            inout("r0") zdtm::over_word() => _, inout("r1") $memory => _, out("r2") _, out("r3") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _,
            out("d15") _,
        )
    };
}

/// # Safety
/// Room for 32 registers.
unsafe fn neon(memory: *mut u8) {
    // SAFETY: our caller's room; the wait reads the word and makes a futex call. The compiler uses D0 to D15 only.
    unsafe { vector_asm!(memory, wait!()) }
}

/// # Safety
/// Room for 32 registers.
unsafe fn neon_busy(memory: *mut u8) {
    // SAFETY: as above; the loop reads the word.
    unsafe { vector_asm!(memory, "22: ldr r2, [r0]\ncmp r2, #0\nbeq 22b") }
}

/// Rounding mode, flush to zero, conditions, saturation and the exceptions that have come.
fn control() -> Result<()> {
    in_thread(|seed| {
        let wanted: u32 = if seed % 2 == 0 {
            0xa0c0_0015
        } else {
            0x5900_008a
        };
        let found: u32;
        // SAFETY: the word is put back before the compiler's code goes on.
        unsafe {
            asm!(
                "push {{r4-r7}}", "push {{r0, r1}}", "vmrs r4, fpscr", "vmsr fpscr, r1",
                wait!(),
                "vmrs r1, fpscr", "vmsr fpscr, r4", "add sp, sp, #8", "pop {{r4-r7}}",
                inout("r0") zdtm::over_word() => _, inout("r1") wanted => found, out("r2") _, out("r3") _,
            );
        }
        check_eq!(found, wanted);
        Ok(())
    })
}

/// The thread pointer, and with it all that is thread-local.
fn thread_pointer() -> Result<()> {
    thread_local!(static OWN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    fn read() -> u32 {
        let found;
        // SAFETY: reads a register.
        unsafe { asm!("mrc p15, 0, {}, c13, c0, 3", out(reg) found) };
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
