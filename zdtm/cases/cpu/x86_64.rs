//! Registers of x86_64: general, x87, SSE, AVX, AVX-512, control words, protection keys, segment bases, rseq.
//!
//! Each test loads registers, waits in its own machine code, where no compiler can use them for anything else, and
//! stores them again. The wait is the futex that [`zdtm::wait`] sleeps on, or a loop that never leaves user mode.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, CpuidResult};

use zdtm::{Case, Result, Team, check_eq, fill, skip, verify};

pub(crate) const CASES: &[Case] = &[
    Case::new("general", general),
    Case::new("general-busy", busy),
    Case::new("x87", x87),
    Case::new("mxcsr", mxcsr),
    Case::new("sse", sse),
    Case::new("avx", avx).needs(&["AVX"]),
    Case::new("avx512", avx512).needs(&["AVX"]),
    Case::new("pkru", pkru).needs(&["protection keys"]),
    Case::new("segment-bases", segments),
    Case::new("direction-flag", flags),
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

fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// The wait: futex(word, FUTEX_WAIT_PRIVATE, 0, NULL) until the word is set. Uses rax, rcx, rdx, rsi, rdi, r10, r11.
macro_rules! wait {
    () => {
        "22: mov eax, 202
         mov esi, 128
         xor edx, edx
         xor r10d, r10d
         syscall
         cmp dword ptr [rdi], 0
         je 22b"
    };
}

/// Everything a system call leaves alone.
fn general() -> Result<()> {
    in_thread(|seed| {
        let mut before = [0u64; 7];
        let mut next = zdtm::pattern(seed);
        before.fill_with(&mut next);
        let mut after = [0u64; 7];
        // SAFETY: all registers are saved around; the wait reads the word and makes a futex call.
        unsafe {
            asm!(
                "push rbx", "push rbp", "push {after}",
                "mov r8, [{before}]", "mov r9, [{before} + 8]", "mov r12, [{before} + 16]",
                "mov r13, [{before} + 24]", "mov r14, [{before} + 32]", "mov r15, [{before} + 40]",
                "mov rbx, [{before} + 48]", "mov rbp, rbx", "not rbp",
                wait!(),
                "not rbp", "cmp rbp, rbx", "je 23f", "xor ebx, ebx", "23:",
                "pop rax",
                "mov [rax], r8", "mov [rax + 8], r9", "mov [rax + 16], r12",
                "mov [rax + 24], r13", "mov [rax + 32], r14", "mov [rax + 40], r15", "mov [rax + 48], rbx",
                "pop rbp", "pop rbx",
                before = in(reg) before.as_ptr(), after = in(reg) after.as_mut_ptr(),
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _,
                out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        check_eq!(after, before);
        Ok(())
    })
}

/// A loop without any system call, so that even rax, rcx and r11 have to survive.
fn busy() -> Result<()> {
    in_thread(|seed| {
        let (rax, rcx, r11, rsi, rdx) = (
            seed * 3,
            seed << 40,
            !seed,
            seed ^ 0xffff_0000_ffff,
            seed << 20 | 1,
        );
        let (mut rax_after, mut rcx_after, mut r11_after, mut rsi_after, mut rdx_after) =
            (rax, rcx, r11, rsi, rdx);
        // SAFETY: reads the word over and over.
        unsafe {
            asm!(
                "22:", "cmp dword ptr [rdi], 0", "je 22b",
                in("rdi") zdtm::over_word(),
                inout("rax") rax_after, inout("rcx") rcx_after, inout("r11") r11_after,
                inout("rsi") rsi_after, inout("rdx") rdx_after,
            );
        }
        check_eq!(
            [rax_after, rcx_after, r11_after, rsi_after, rdx_after],
            [rax, rcx, r11, rsi, rdx]
        );
        Ok(())
    })
}

/// A computation with six values on the register stack, a changed rounding mode, and flags in the status word.
fn x87() -> Result<()> {
    in_thread(|seed| {
        #[allow(clippy::cast_precision_loss, reason = "any number will do")]
        let values: [f64; 6] = std::array::from_fn(|index| 1.0 / (seed as f64 + index as f64));
        let (mut before, mut after) = ([0u8; 108], [0u8; 108]);
        let control: u16 = 0x0f3f; // Round to zero, all masked but precision loss.
        // SAFETY: fnsave writes 108 bytes and resets the unit, which the second one leaves as the compiler expects it.
        unsafe {
            asm!(
                "fninit", "fldcw [{control}]",
                "fld qword ptr [{values}]", "fld qword ptr [{values} + 8]", "fld qword ptr [{values} + 16]",
                "fld qword ptr [{values} + 24]", "fld qword ptr [{values} + 32]", "fld qword ptr [{values} + 40]",
                "fcomi st(0), st(1)",
                "fnsave [{before}]", "frstor [{before}]",
                wait!(),
                "fnsave [{after}]", "fninit",
                control = in(reg) &raw const control, values = in(reg) values.as_ptr(),
                before = in(reg) before.as_mut_ptr(), after = in(reg) after.as_mut_ptr(),
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        // Control, status, tags; then the ten bytes of each register. Addresses of the last instruction are not state
        // that this kernel keeps on every machine.
        check_eq!(after[..12], before[..12], "control, status and tag words");
        check_eq!(after[28..], before[28..], "the register stack");
        Ok(())
    })
}

fn mxcsr() -> Result<()> {
    in_thread(|seed| {
        let wanted: u32 = if seed % 2 == 0 { 0x7f80 | 0x40 } else { 0x3f95 };
        let (mut found, mut saved) = (0u32, 0u32);
        // SAFETY: the control word is put back.
        unsafe {
            asm!(
                "stmxcsr [{saved}]", "ldmxcsr [{wanted}]",
                wait!(),
                "stmxcsr [{found}]", "ldmxcsr [{saved}]",
                saved = in(reg) &raw mut saved, wanted = in(reg) &raw const wanted, found = in(reg) &raw mut found,
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
            );
        }
        check_eq!(found, wanted);
        Ok(())
    })
}

/// Loads or stores sixteen vector registers of a size.
macro_rules! vectors {
    ($move:literal, $kind:literal, $size:literal, $(($load:literal, $number:literal)),*) => {
        concat!($($move, " ", $kind, $number, ", [{memory} + ", $size, "*", $number, "]\n"),*)
    };
}
macro_rules! vectors_back {
    ($move:literal, $kind:literal, $size:literal, $($number:literal),*) => {
        concat!($($move, " [{memory} + ", $size, "*", $number, "], ", $kind, $number, "\n"),*)
    };
}

fn sse() -> Result<()> {
    in_thread(|seed| {
        let mut memory = [0u8; 16 * 16];
        fill(&mut memory, seed);
        // SAFETY: the memory holds sixteen registers of 16 bytes; all are declared as changed.
        unsafe {
            asm!(
                vectors!("movups", "xmm", "16", ("", "0"), ("", "1"), ("", "2"), ("", "3"), ("", "4"), ("", "5"), ("", "6"), ("", "7"), ("", "8"), ("", "9"), ("", "10"), ("", "11"), ("", "12"), ("", "13"), ("", "14"), ("", "15")),
                "push {memory}",
                // So that what comes out has not just stayed in memory.
                "mov rcx, 32", "24: mov qword ptr [{memory} + 8*rcx - 8], 0", "loop 24b",
                wait!(),
                "pop {memory}",
                vectors_back!("movups", "xmm", "16", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"),
                memory = inout(reg) memory.as_mut_ptr() => _,
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            );
        }
        verify(&memory, seed)
    })
}

fn avx() -> Result<()> {
    if !std::arch::is_x86_feature_detected!("avx") {
        return skip("no AVX");
    }
    in_thread(|seed| {
        let mut memory = [0u8; 32 * 16];
        fill(&mut memory, seed);
        // SAFETY: the processor has AVX; the memory holds sixteen registers of 32 bytes.
        unsafe {
            asm!(
                vectors!("vmovups", "ymm", "32", ("", "0"), ("", "1"), ("", "2"), ("", "3"), ("", "4"), ("", "5"), ("", "6"), ("", "7"), ("", "8"), ("", "9"), ("", "10"), ("", "11"), ("", "12"), ("", "13"), ("", "14"), ("", "15")),
                "push {memory}",
                "mov rcx, 64", "24: mov qword ptr [{memory} + 8*rcx - 8], 0", "loop 24b",
                wait!(),
                "pop {memory}",
                vectors_back!("vmovups", "ymm", "32", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"),
                "vzeroupper",
                memory = inout(reg) memory.as_mut_ptr() => _,
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            );
        }
        verify(&memory, seed)
    })
}

/// The upper halves, the upper sixteen, and the mask registers.
fn avx512() -> Result<()> {
    if !std::arch::is_x86_feature_detected!("avx512bw") {
        return skip("no AVX-512");
    }
    in_thread(|seed| {
        let mut memory = [0u8; 64 * 32 + 64];
        fill(&mut memory, seed);
        // SAFETY: the processor has AVX-512BW; the memory holds 32 registers of 64 bytes and eight masks.
        unsafe {
            asm!(
                vectors!("vmovups", "zmm", "64", ("", "0"), ("", "1"), ("", "2"), ("", "3"), ("", "4"), ("", "5"), ("", "6"), ("", "7"), ("", "8"), ("", "9"), ("", "10"), ("", "11"), ("", "12"), ("", "13"), ("", "14"), ("", "15"), ("", "16"), ("", "17"), ("", "18"), ("", "19"), ("", "20"), ("", "21"), ("", "22"), ("", "23"), ("", "24"), ("", "25"), ("", "26"), ("", "27"), ("", "28"), ("", "29"), ("", "30"), ("", "31")),
                "kmovq k1, [{memory} + 2056]", "kmovq k2, [{memory} + 2064]", "kmovq k3, [{memory} + 2072]",
                "kmovq k4, [{memory} + 2080]", "kmovq k5, [{memory} + 2088]", "kmovq k6, [{memory} + 2096]",
                "kmovq k7, [{memory} + 2104]", "kmovq k0, [{memory} + 2048]",
                "push {memory}",
                "mov rcx, 264", "24: mov qword ptr [{memory} + 8*rcx - 8], 0", "loop 24b",
                wait!(),
                "pop {memory}",
                vectors_back!("vmovups", "zmm", "64", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31"),
                "kmovq [{memory} + 2048], k0", "kmovq [{memory} + 2056], k1", "kmovq [{memory} + 2064], k2",
                "kmovq [{memory} + 2072], k3", "kmovq [{memory} + 2080], k4", "kmovq [{memory} + 2088], k5",
                "kmovq [{memory} + 2096], k6", "kmovq [{memory} + 2104], k7",
                "vzeroupper",
                memory = inout(reg) memory.as_mut_ptr() => _,
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _, out("xmm20") _, out("xmm21") _,
                out("xmm22") _, out("xmm23") _, out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _,
                out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
                out("k1") _, out("k2") _, out("k3") _, out("k4") _, out("k5") _, out("k6") _, out("k7") _,
            );
        }
        verify(&memory, seed)
    })
}

/// Rights of keys that no page of this program has.
fn pkru() -> Result<()> {
    // OSPKE: the system has switched them on.
    if cpuid(7, 0).ecx & 16 == 0 {
        return skip("no protection keys");
    }
    in_thread(|seed| {
        let wanted: u32 = if seed % 2 == 0 {
            0x5555_5550
        } else {
            0x9999_9990
        };
        let found: u32;
        // SAFETY: key 0, which all memory has, stays fully usable; the register is put back.
        unsafe {
            asm!(
                "xor ecx, ecx", "rdpkru", "mov r9d, eax",
                "mov eax, r8d", "xor ecx, ecx", "xor edx, edx", "wrpkru",
                wait!(),
                "xor ecx, ecx", "rdpkru", "mov r8d, eax",
                "mov eax, r9d", "xor ecx, ecx", "xor edx, edx", "wrpkru",
                inout("r8d") wanted => found, out("r9") _,
                inout("rdi") zdtm::over_word() => _,
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r10") _, out("r11") _,
            );
        }
        check_eq!(found, wanted);
        Ok(())
    })
}

/// FS is libc's; GS is free to use.
fn segments() -> Result<()> {
    const SET_GS: usize = 0x1001;
    const GET_GS: usize = 0x1004;
    in_thread(|seed| {
        let own = Box::new(seed);
        // SAFETY: nothing uses GS but this test.
        unsafe {
            zdtm::syscall(
                libc::SYS_arch_prctl,
                [SET_GS, (&raw const *own).addr(), 0, 0, 0, 0],
            )
        }?;
        zdtm::wait();
        let (mut base, read): (usize, u64);
        base = 0;
        // SAFETY: the base is written; GS:0 is the boxed number.
        unsafe {
            zdtm::syscall(
                libc::SYS_arch_prctl,
                [GET_GS, (&raw mut base).addr(), 0, 0, 0, 0],
            )?;
            check_eq!(base, (&raw const *own).addr());
            asm!("mov {}, gs:[0]", out(reg) read);
        }
        check_eq!(read, seed);
        Ok(())
    })
}

/// Arithmetic flags and the direction flag, over a wait in user mode.
fn flags() -> Result<()> {
    in_thread(|seed| {
        let wanted: u64 = if seed % 2 == 0 {
            0x202 | 0x400 | 0x8d5 & !0x800
        } else {
            0x202 | 0x800
        };
        let mut found: u64;
        // SAFETY: the direction flag is cleared before the compiler's code goes on.
        unsafe {
            asm!(
                "push {wanted}", "popfq",
                // mov and jrcxz leave the flags alone.
                "22: mov ecx, [rdi]", "jrcxz 22b",
                "pushfq", "pop {found}", "cld",
                wanted = in(reg) wanted, found = out(reg) found,
                in("rdi") zdtm::over_word(), out("rcx") _,
            );
        }
        // Carry, parity, adjust, zero, sign, direction, overflow.
        check_eq!(found & 0xcd5, wanted & 0xcd5);
        Ok(())
    })
}
