//! Restartable sequences: the area stays registered, and a dump is one of the things that restart a sequence.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use zdtm::{Case, Result, Team, check, check_eq, skip};

pub(crate) const CASES: &[Case] = &[
    Case::new("rseq", registered),
    Case::new("rseq-critical-section", critical_section)
        .stays("it looks at the processor's counter, which starts anew with the machine"),
];

unsafe extern "C" {
    // Linked and not looked up, for a static program has no names.
    static __rseq_offset: isize;
    static __rseq_size: libc::c_uint;
}

/// The area libc has registered for this thread.
fn area() -> Option<*mut u32> {
    let thread: *mut u8;
    // SAFETY: the first word of the thread block is its own address; libc's variables do not change after the start.
    unsafe {
        asm!("mov {}, fs:[0]", out(reg) thread);
        (__rseq_size > 0).then(|| thread.offset(__rseq_offset).cast())
    }
}

/// The processor number in the area is the one we run on, wherever that is.
fn registered() -> Result<()> {
    if area().is_none() {
        return skip("this libc registers no rseq area");
    }
    let team = Team::start(3, |_, set_up| {
        let Some(area) = area() else {
            zdtm::bail!("no area");
        };
        set_up();
        zdtm::wait();
        let own = Pid::from_raw(0);
        let all = sched_getaffinity(own)?;
        for cpu in (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)) {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(own, &one)?;
            // SAFETY: the area is this thread's, and lives as long; its second word is the processor.
            let found = unsafe { area.add(1).read_volatile() };
            check_eq!(usize::try_from(found)?, cpu);
        }
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

static ENTERED: AtomicU64 = AtomicU64::new(0);
static ABORTS: AtomicU64 = AtomicU64::new(0);

/// Spins inside of a critical section. Whoever interrupts it must send it to its abort address, from where it enters
/// anew and notes the time; so after a dump the time of entry must be later than that of the dump.
fn critical_section() -> Result<()> {
    if area().is_none() {
        return skip("this libc registers no rseq area");
    }
    let thread = std::thread::spawn(|| {
        if let Some(area) = area() {
            spin(area);
        }
    });
    while ENTERED.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(5));
    // SAFETY: reads the counter.
    let before = unsafe { _rdtsc() };
    zdtm::checkpoint()?;
    check!(thread.join().is_ok());
    let entered = ENTERED.load(Ordering::SeqCst);
    check!(
        entered > before,
        "still inside of the section it was in before the dump"
    );
    check!(ABORTS.load(Ordering::SeqCst) > 0);
    Ok(())
}

fn spin(area: *mut u32) {
    // SAFETY: the section is as linux/rseq.h wants it: a descriptor aligned to 32 bytes, with version and flags zero,
    // start, length and abort address, before which the signature that libc registers stands. Inside it only reads
    // the word; no call is made.
    unsafe {
        asm!(
            ".pushsection .data.rel.ro.zdtm_rseq, \"aw\"",
            ".balign 32",
            "20: .long 0, 0",
            ".quad 23f, 24f - 23f, 25f",
            ".popsection",
            // Outside: note the time, and arm.
            "22: rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "mov [{entered}], rax",
            "lea rax, [rip + 20b]",
            "mov [{area} + 8], rax",
            "23: cmp dword ptr [{word}], 0",
            "je 23b",
            "24: jmp 26f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "25: inc qword ptr [{aborts}]",
            "jmp 22b",
            "26: mov qword ptr [{area} + 8], 0",
            entered = in(reg) ENTERED.as_ptr(),
            aborts = in(reg) ABORTS.as_ptr(),
            area = in(reg) area,
            word = in(reg) zdtm::over_word(),
            out("rax") _, out("rdx") _,
        );
    }
}
