//! General registers: `struct user_regs_struct`, and the rules of syscall restart.
//!
//! A call that was interrupted is issued again, whatever the kernel would have done after a signal: the
//! tracer's stop is none. That holds for the calls of `restart.rs` too, for which the kernel has only a
//! plain `EINTR`.
//!
//! `arch/x86/include/asm/user_64.h`, `arch/x86/kernel/signal.c` (`arch_do_signal_or_restart`).

use criu_arch::{Next, Regs, Timeout};

use crate::restart;

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
    /// The error, positive, with which the call that the thread was stopped in says that it was only
    /// interrupted; `None` outside a call, and after one that has come to an end.
    fn interrupted(&self) -> Option<i64> {
        if self.wide(self.orig_ax) < 0 {
            return None;
        }
        match -self.wide(self.ax) {
            error @ (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK) => {
                Some(error)
            }
            EINTR if restart::may_be_repeated(self.nr(), self.is_compat(), self.arguments()[0]) => {
                Some(EINTR)
            }
            _ => None,
        }
    }

    fn wide(&self, word: u64) -> i64 {
        if self.is_compat() {
            low_half(word)
        } else {
            word.cast_signed()
        }
    }

    /// The number of the call it is in.
    fn nr(&self) -> u64 {
        self.wide(self.orig_ax).cast_unsigned()
    }

    fn is_restart(&self) -> bool {
        self.nr()
            == if self.is_compat() {
                RESTART_SYSCALL_COMPAT
            } else {
                RESTART_SYSCALL
            }
    }

    fn arguments(&self) -> [u64; 6] {
        if self.is_compat() {
            [self.bx, self.cx, self.dx, self.si, self.di, self.bp].map(|word| word & 0xffff_ffff)
        } else {
            [self.di, self.si, self.dx, self.r10, self.r8, self.r9]
        }
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

    fn set_argument(&mut self, index: usize, value: u64) {
        let registers = if self.is_compat() {
            [
                &mut self.bx,
                &mut self.cx,
                &mut self.dx,
                &mut self.si,
                &mut self.di,
                &mut self.bp,
            ]
        } else {
            [
                &mut self.di,
                &mut self.si,
                &mut self.dx,
                &mut self.r10,
                &mut self.r8,
                &mut self.r9,
            ]
        };
        *registers[index] = value;
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted().is_some()
    }

    /// The registers tell by themselves (`orig_ax`).
    fn woken_in(&mut self, _: u64, _: &[u64; 6], _: u64) {}

    fn left_to_kernel(&self, _: bool) -> Self {
        self.clone()
    }

    fn resumed(&self) -> Self {
        let mut regs = match self.interrupted() {
            Some(ERESTART_RESTARTBLOCK) => self.clone().again(if self.is_compat() {
                RESTART_SYSCALL_COMPAT
            } else {
                RESTART_SYSCALL
            }),
            Some(_) => self.clone().again(self.orig_ax),
            None => self.clone(),
        };
        regs.orig_ax = NO_SYSCALL;
        regs
    }

    /// `handle_signal`, `arch_do_signal_or_restart`.
    fn reborn(&self, next: Next) -> Self {
        let interrupted = self.interrupted();
        let again = match (interrupted, next) {
            (None, _) => false,
            // What it was is not known any more: it was stopped and went on before.
            (Some(ERESTART_RESTARTBLOCK), Next::Resume) => !self.is_restart(),
            (Some(_), Next::Resume) => true,
            (Some(ERESTARTNOINTR), Next::Handler { .. }) => true,
            (Some(ERESTARTSYS), Next::Handler { restart }) => restart,
            (Some(_), Next::Handler { .. }) => false,
        };
        let mut regs = match interrupted {
            Some(_) if again => self.clone().again(self.orig_ax),
            Some(_) => Self {
                ax: (-EINTR).cast_unsigned(),
                ..self.clone()
            },
            None => self.clone(),
        };
        regs.orig_ax = NO_SYSCALL;
        regs
    }

    fn timeout(&self) -> Option<Timeout> {
        let result = self.interrupted()?;
        let args = self.arguments();
        let mut timeout = restart::timeout(self.nr(), self.is_compat(), &args)?;
        timeout.remembered = result == ERESTART_RESTARTBLOCK;
        Some(timeout)
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
        assert_eq!(reborn(&regs, Next::Resume), (0x1000, 35));
        let regs = stopped_in(RESTART_SYSCALL, -516);
        assert_eq!(reborn(&regs, Next::Resume), (0x1002, -EINTR));
    }

    fn reborn(regs: &X86Regs, next: Next) -> (u64, i64) {
        let regs = regs.reborn(next);
        (regs.ip, regs.ax.cast_signed())
    }

    #[test]
    fn a_handler_decides_as_in_the_kernel() {
        let (bare, restart) = (
            Next::Handler { restart: false },
            Next::Handler { restart: true },
        );
        let over = (0x1002, -EINTR);
        assert_eq!(reborn(&stopped_in(0, -512), bare), over);
        assert_eq!(reborn(&stopped_in(0, -512), restart), (0x1000, 0));
        assert_eq!(reborn(&stopped_in(0, -513), bare), (0x1000, 0));
        assert_eq!(reborn(&stopped_in(34, -514), restart), over);
        assert_eq!(reborn(&stopped_in(35, -516), restart), over);
        assert_eq!(reborn(&stopped_in(232, -EINTR), restart), over);
    }

    #[test]
    fn a_bare_eintr_is_repeated_where_nobody_has_written_anything() {
        assert_eq!(
            reborn(&stopped_in(232, -EINTR), Next::Resume),
            (0x1000, 232)
        );
        assert_eq!(stopped_in(232, -EINTR).resumed().ip, 0x1000);
        // close(2): the descriptor is gone already.
        assert_eq!(stopped_in(3, -EINTR).resumed().ip, 0x1002);
    }

    #[test]
    fn a_timeout_is_an_argument() {
        let mut regs = stopped_in(232, -EINTR);
        regs.r10 = 1200;
        let timeout = regs.timeout().expect("epoll_wait");
        assert_eq!((timeout.argument, timeout.value), (3, 1200));
        regs.set_argument(3, 5);
        assert_eq!(regs.r10, 5);
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
