//! Registers of mips64: general, HI and LO, FPU with its control register, DSP accumulators, TLS; and threads that
//! are stopped in the delay slot of a branch.
//!
//! Each test loads registers, waits in its own machine code, where no compiler can use them for anything else, and
//! stores them again. The wait is a loop on the word that [`zdtm::wait`] sleeps on, or a futex call.

use std::arch::{asm, global_asm};

use zdtm::{Case, Result, Team, check, check_eq, skip};

pub(crate) const CASES: &[Case] = &[
    Case::new("general", general),
    Case::new("general-busy", || busy(busy_by_v0, [2, 3])),
    Case::new("general-busy-others", || busy(busy_by_t8, [24, 25])),
    Case::new("fpu", fpu),
    Case::new("dsp", dsp),
    Case::new("tls", tls),
    Case::new("delay-slot", || delay_slot(integer_slot)),
    Case::new("delay-slot-fpu", || delay_slot(fpu_slot)),
];

global_asm!(
    r#"
        .set push
        .set noreorder
        .set noat
        .text

# a0 what to load, a1 where to store, a2 the word: callee-saved registers go to the stack first.
        .macro SAVE
        daddiu  $29, $29, -256
        .irp r, 16, 17, 18, 19, 20, 21, 22, 23, 28, 30, 31
        sd      $\r, 8*(\r-16)($29)
        .endr
        sd      $5, 192($29)
        sd      $6, 200($29)
        .endm
        .macro RESTORE
        .irp r, 16, 17, 18, 19, 20, 21, 22, 23, 28, 30, 31
        ld      $\r, 8*(\r-16)($29)
        .endr
        jr      $31
        daddiu  $29, $29, 256
        .endm

# All but k0, k1, sp, and the two that the loop uses.
        .macro BUSY name, x, y
        .globl  \name
        .type   \name, @function
\name:  SAVE
        ld      $2, 256($4)
        ld      $3, 264($4)
        mthi    $2
        mtlo    $3
        .irp r, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 28, 30, 31
        ld      $\r, 8*\r($4)
        .endr
        ld      $4, 32($4)
        ld      $\y, 200($29)
1:      lw      $\x, 0($\y)
        beqz    $\x, 1b
        nop
        ld      $\y, 192($29)
        .irp r, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 28, 30, 31
        sd      $\r, 8*\r($\y)
        .endr
        mfhi    $8
        sd      $8, 256($\y)
        mflo    $8
        sd      $8, 264($\y)
        RESTORE
        .endm
        BUSY    busy_by_v0, 2, 3
        BUSY    busy_by_t8, 24, 25

# What a call keeps: s0 to s7, gp, fp, ra.
        .globl  in_call
        .type   in_call, @function
in_call: SAVE
        .irp r, 16, 17, 18, 19, 20, 21, 22, 23, 28, 30, 31
        ld      $\r, 8*\r($4)
        .endr
1:      li      $2, 5194                # futex(word, FUTEX_WAIT_PRIVATE, 0, NULL)
        ld      $4, 200($29)
        li      $5, 128
        move    $6, $0
        move    $7, $0
        syscall
        ld      $4, 200($29)
        lw      $2, 0($4)
        beqz    $2, 1b
        nop
        ld      $3, 192($29)
        .irp r, 16, 17, 18, 19, 20, 21, 22, 23, 28, 30, 31
        sd      $\r, 8*\r($3)
        .endr
        RESTORE

# f0 to f31 and fcr31; the caller's come back.
        .macro FPALL op, base
        .irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        \op     $f\r, 8*\r(\base)
        .endr
        .endm
        .globl  fp_busy
        .type   fp_busy, @function
fp_busy: daddiu $29, $29, -272
        FPALL   sdc1, $29
        cfc1    $8, $31
        sd      $8, 256($29)
        FPALL   ldc1, $4
        lw      $8, 256($4)
        ctc1    $8, $31
1:      lw      $2, 0($6)
        beqz    $2, 1b
        nop
        FPALL   sdc1, $5
        cfc1    $8, $31
        sd      $8, 256($5)
        ld      $8, 256($29)
        ctc1    $8, $31
        FPALL   ldc1, $29
        jr      $31
        daddiu  $29, $29, 272

# Three accumulators and the control register.
        .set push
        .set dsp
        .globl  dsp_busy
        .type   dsp_busy, @function
dsp_busy:
        .irp r, 1, 2, 3
        ld      $8, 16*(\r-1)($4)
        mthi    $8, $ac\r
        ld      $8, 16*(\r-1)+8($4)
        mtlo    $8, $ac\r
        .endr
        ld      $8, 48($4)
        wrdsp   $8, 31
1:      lw      $2, 0($6)
        beqz    $2, 1b
        nop
        .irp r, 1, 2, 3
        mfhi    $8, $ac\r
        sd      $8, 16*(\r-1)($5)
        mflo    $8, $ac\r
        sd      $8, 16*(\r-1)+8($5)
        .endr
        rddsp   $8, 31
        jr      $31
        sd      $8, 48($5)
        .set pop

# a0 the word, a1 where to store two counts: of what is in the delay slot, and of what is before the branch. The slot is
# on the next page, so that an emulator that stops at branches only can stop in there, too.
        .globl  integer_slot
        .type   integer_slot, @function
        .balign 4096
        .space  4096-12
1:      lw      $8, 0($4)
        daddiu  $9, $9, 1
        beqz    $8, 1b
        daddiu  $10, $10, 1
        sd      $10, 0($5)
        jr      $31
        sd      $9, 8($5)
integer_slot:
        move    $9, $0
        b       1b
        move    $10, $0

# The same behind a branch of the FPU: without one, the kernel runs the instruction of the slot elsewhere.
        .globl  fpu_slot
        .type   fpu_slot, @function
fpu_slot:
        move    $9, $0
        move    $10, $0
        dmtc1   $0, $f0
2:      c.eq.d  $f0, $f0
        daddiu  $9, $9, 1
        lw      $8, 0($4)
        bnez    $8, 3f
        nop
        bc1t    2b
        daddiu  $10, $10, 1
        # Never here: the condition holds.
        daddiu  $10, $10, 1
3:      sd      $10, 0($5)
        daddiu  $9, $9, -1              # the last round has no slot
        jr      $31
        sd      $9, 8($5)
        .set pop
    "#
);

type Hold = unsafe extern "C" fn(before: *const u64, after: *mut u64, word: *const u32);
type Count = unsafe extern "C" fn(word: *const u32, counts: *mut u64);

unsafe extern "C" {
    fn busy_by_v0(before: *const u64, after: *mut u64, word: *const u32);
    fn busy_by_t8(before: *const u64, after: *mut u64, word: *const u32);
    fn in_call(before: *const u64, after: *mut u64, word: *const u32);
    fn fp_busy(before: *const u64, after: *mut u64, word: *const u32);
    fn dsp_busy(before: *const u64, after: *mut u64, word: *const u32);
    fn integer_slot(word: *const u32, counts: *mut u64);
    fn fpu_slot(word: *const u32, counts: *mut u64);
}

/// Runs on threads of their own, with a moment to get to their waiting place.
fn in_threads(body: impl Fn(u64) -> Result<()> + Send + Sync + Clone + 'static) -> Result<()> {
    let team = Team::start(2, move |index, set_up| {
        set_up();
        body(1000 + index as u64)
    })?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

/// What was loaded, and what is there after the wait.
fn held<const N: usize>(hold: Hold, seed: u64) -> ([u64; N], [u64; N]) {
    let (mut before, mut after) = ([0; N], [0; N]);
    before.fill_with(zdtm::pattern(seed));
    // SAFETY: `hold` reads and writes no more than its arrays and the word, and puts back what the caller needs.
    unsafe { hold(before.as_ptr(), after.as_mut_ptr(), zdtm::over_word()) };
    (before, after)
}

/// Everything a system call leaves alone.
fn general() -> Result<()> {
    in_threads(|seed| {
        let (before, after) = held::<34>(in_call, seed);
        check_eq!(after[16..24], before[16..24], "s0 to s7");
        check_eq!(
            [after[28], after[30], after[31]],
            [before[28], before[30], before[31]]
        );
        Ok(())
    })
}

/// A loop without any system call, so that all registers have to survive.
fn busy(hold: Hold, used: [usize; 2]) -> Result<()> {
    in_threads(move |seed| {
        let (before, after) = held::<34>(hold, seed);
        for register in (1..34).filter(|n| !used.contains(n) && ![26, 27, 29].contains(n)) {
            check_eq!(after[register], before[register], "r{register}");
        }
        Ok(())
    })
}

/// Registers, rounding mode, enabled exceptions, flags and conditions.
fn fpu() -> Result<()> {
    in_threads(|seed| {
        let (mut before, mut after) = ([0; 33], [0; 33]);
        before.fill_with(zdtm::pattern(seed));
        // All conditions, flush to zero; overflow enabled, which has not happened; flags of what has; rounding.
        before[32] = 0xff80_0000 | 0x200 | 0x54 | seed & 3;
        // SAFETY: as above; the control word is put back.
        unsafe { fp_busy(before.as_ptr(), after.as_mut_ptr(), zdtm::over_word()) };
        check_eq!(after[..32], before[..32]);
        check_eq!(after[32] & 0xffff_ffff, before[32]);
        Ok(())
    })
}

fn dsp() -> Result<()> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let mut words = info
        .lines()
        .filter(|line| line.starts_with("ASEs"))
        .flat_map(str::split_whitespace);
    if !words.any(|word| word == "dsp") {
        return skip("no DSP extension");
    }
    in_threads(|seed| {
        let (mut before, mut after) = ([0; 7], [0; 7]);
        // They have 32 bits each.
        let mut next = zdtm::pattern(seed);
        before.fill_with(|| (next().cast_signed() >> 32).cast_unsigned());
        // Position 5, no carry; overflow flags; conditions.
        before[6] = 0x0f0f_0005;
        // SAFETY: as above; no other code here uses the accumulators.
        unsafe { dsp_busy(before.as_ptr(), after.as_mut_ptr(), zdtm::over_word()) };
        check_eq!(after, before);
        Ok(())
    })
}

/// UserLocal, where libc keeps everything of a thread.
fn tls() -> Result<()> {
    fn user_local() -> u64 {
        let word;
        // SAFETY: reads a register.
        unsafe {
            asm!(".set push", ".set mips64r2", "rdhwr $3, $29", ".set pop", lateout("$3") word)
        };
        word
    }
    thread_local!(static MINE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    let before = user_local();
    in_threads(|seed| {
        MINE.set(seed);
        let before = user_local();
        zdtm::wait();
        check_eq!((user_local(), MINE.get()), (before, seed));
        Ok(())
    })?;
    check_eq!((user_local(), MINE.get()), (before, 0));
    Ok(())
}

/// The instruction in the slot has run as often as the one before the branch.
fn delay_slot(count: Count) -> Result<()> {
    in_threads(move |_| {
        let mut counts = [0; 2];
        // SAFETY: reads the word, and writes two counts.
        unsafe { count(zdtm::over_word(), counts.as_mut_ptr()) };
        check!(counts[0] > 0);
        check_eq!(counts[0], counts[1]);
        Ok(())
    })
}
