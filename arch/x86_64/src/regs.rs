//! General registers: `struct user_regs_struct`, and the rules of syscall restart.
//!
//! `arch/x86/include/asm/user_64.h`, `arch/x86/kernel/signal.c` (`arch_do_signal_or_restart`).

use criu_arch::Regs;

macro_rules! registers {
    ($($name:ident),* $(,)?) => {
        /// `struct user_regs_struct`, in the kernel's order.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the fields are the machine's registers")]
        pub struct X86Regs { $(pub $name: u64),* }

        impl X86Regs {
            fn words(&self) -> [u64; 27] { [$(self.$name),*] }
            fn from_words(words: [u64; 27]) -> Self {
                let [$($name),*] = words;
                Self { $($name),* }
            }
        }
    };
}

registers!(
    r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp,
    ss, fs_base, gs_base, ds, es, fs, gs,
);

/// Code segment of 64-bit user code.
pub(crate) const USER_CS: u64 = 0x33;
/// Stack segment of user code.
pub(crate) const USER_DS: u64 = 0x2b;
/// Code segment of 32-bit user code under a 64-bit kernel.
const USER32_CS: u64 = 0x23;

/// Length of `syscall`, `sysenter` and `int 0x80` alike.
const SYSCALL_LEN: u64 = 2;
const NO_SYSCALL: u64 = u64::MAX;

const EINTR: i64 = 4;
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

const RESTART_SYSCALL: u64 = 219;
const RESTART_SYSCALL_COMPAT: u64 = 0;

impl X86Regs {
    /// The result of the call the thread was stopped in; `None` outside a call.
    fn interrupted(&self) -> Option<i64> {
        let width = |word| {
            if self.is_compat() {
                low_half(word)
            } else {
                word.cast_signed()
            }
        };
        (width(self.orig_ax) >= 0).then(|| width(self.ax))
    }

    fn again(mut self, nr: u64) -> Self {
        self.ax = nr;
        self.ip -= SYSCALL_LEN;
        self
    }
}

/// The low 32 bits, sign-extended: what a 32-bit program sees of a register.
fn low_half(word: u64) -> i64 {
    (word << 32).cast_signed() >> 32
}

impl Regs for X86Regs {
    const SIZE: usize = 27 * 8;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let mut words = [0; 27];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Some(Self::from_words(words))
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn ip(&self) -> u64 {
        self.ip
    }

    fn set_ip(&mut self, ip: u64) {
        self.ip = ip;
    }

    fn sp(&self) -> u64 {
        self.sp
    }

    fn is_compat(&self) -> bool {
        self.cs == USER32_CS
    }

    fn resumed(&self) -> Self {
        let mut regs = match self.interrupted().map(|result| -result) {
            Some(ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND) => self.clone().again(self.orig_ax),
            Some(ERESTART_RESTARTBLOCK) => self.clone().again(if self.is_compat() {
                RESTART_SYSCALL_COMPAT
            } else {
                RESTART_SYSCALL
            }),
            _ => self.clone(),
        };
        regs.orig_ax = NO_SYSCALL;
        regs
    }

    fn reborn(&self) -> Self {
        let mut regs = match self.interrupted().map(|result| -result) {
            Some(ERESTART_RESTARTBLOCK) => Self {
                ax: (-EINTR).cast_unsigned(),
                ..self.clone()
            },
            _ => self.resumed(),
        };
        regs.orig_ax = NO_SYSCALL;
        regs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(nr: u64, result: i64) -> X86Regs {
        X86Regs {
            orig_ax: nr,
            ax: result.cast_unsigned(),
            ip: 0x1002,
            cs: USER_CS,
            ..X86Regs::default()
        }
    }

    #[test]
    fn bytes_round_trip() {
        let regs = stopped_in(7, -512);
        assert_eq!(X86Regs::from_bytes(&regs.to_bytes()), Some(regs));
        assert_eq!(X86Regs::from_bytes(&[0; 8]), None);
    }

    #[test]
    fn an_interrupted_call_is_issued_again() {
        let regs = stopped_in(0, -512).resumed();
        assert_eq!((regs.ip, regs.ax, regs.orig_ax), (0x1000, 0, NO_SYSCALL));
    }

    #[test]
    fn a_restart_block_lives_only_in_its_task() {
        let regs = stopped_in(35, -516);
        assert_eq!(
            (regs.resumed().ip, regs.resumed().ax),
            (0x1000, RESTART_SYSCALL)
        );
        assert_eq!(
            (regs.reborn().ip, regs.reborn().ax.cast_signed()),
            (0x1002, -EINTR)
        );
    }

    #[test]
    fn outside_a_call_nothing_moves() {
        let regs = X86Regs {
            orig_ax: NO_SYSCALL,
            ax: (-512i64).cast_unsigned(),
            ip: 5,
            ..X86Regs::default()
        };
        assert_eq!(regs.resumed(), regs);
    }

    #[test]
    fn compat_results_are_32_bits_wide() {
        let mut regs = stopped_in(162, -516);
        (regs.cs, regs.ax) = (USER32_CS, 0xffff_fdfc);
        assert_eq!(
            (regs.resumed().ip, regs.resumed().ax),
            (0x1000, RESTART_SYSCALL_COMPAT)
        );
    }
}
