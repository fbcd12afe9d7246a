//! General registers: `struct user_pt_regs`, and the rules of syscall restart.
//!
//! The kernel has rewound an interrupted call when the tracer comes to see the registers, and `orig_x0`
//! is in none of its structures: `do_signal` in `arch/arm64/kernel/signal.c`. So a thread that goes on
//! with these registers issues the call again by itself. What it was is known only of a thread that slept
//! in it ([`Regs::woken_in`]).

use criu_arch::{Interrupted, Next, Regs, Timeout, Woken};

use crate::restart::TABLE;

/// `struct user_pt_regs`.
#[derive(Clone, Debug, Default)]
pub struct Arm64Regs {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// The program counter.
    pub pc: u64,
    /// Flags and mode.
    pub pstate: u64,
    pub(crate) woken: Option<Woken>,
}

/// What it was woken in is no register.
impl PartialEq for Arm64Regs {
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

/// Length of `svc`.
const SYSCALL_LEN: u64 = 4;
const EINTR: i64 = 4;
const RESTART_SYSCALL: u64 = 128;
/// The register of the number of a call.
const NR: usize = 8;

impl Arm64Regs {
    fn words(&self) -> [u64; 34] {
        let mut words = [0; 34];
        words[..31].copy_from_slice(&self.x);
        (words[31], words[32], words[33]) = (self.sp, self.pc, self.pstate);
        words
    }

    /// The call that only the stop interrupted, and how it said so.
    fn interrupted(&self) -> Option<(Woken, Interrupted)> {
        let woken = self.woken.filter(|woken| woken.nr == self.x[NR])?;
        if self.pc == woken.ip - SYSCALL_LEN && self.x[0] == woken.args[0] {
            return Some((woken, TABLE.rewound(woken.nr, &woken.args)));
        }
        let bare = self.pc == woken.ip && self.x[0].cast_signed() == -EINTR;
        (bare && TABLE.may_be_repeated(woken.nr)).then_some((woken, Interrupted::Eintr))
    }

    fn again(&self, woken: &Woken) -> Self {
        let mut regs = self.clone();
        (regs.x[0], regs.pc, regs.woken) = (woken.args[0], woken.ip - SYSCALL_LEN, None);
        regs
    }

    fn over(&self, woken: &Woken) -> Self {
        let mut regs = self.clone();
        (regs.x[0], regs.pc, regs.woken) = ((-EINTR).cast_unsigned(), woken.ip, None);
        regs
    }

    fn as_it_is(&self) -> Self {
        let mut regs = self.clone();
        regs.woken = None;
        regs
    }
}

impl Regs for Arm64Regs {
    const SIZE: usize = 34 * 8;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let mut words = [0; 34];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let mut regs = Self::default();
        regs.x.copy_from_slice(&words[..31]);
        (regs.sp, regs.pc, regs.pstate) = (words[31], words[32], words[33]);
        Some(regs)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn ip(&self) -> u64 {
        self.pc
    }

    fn set_ip(&mut self, ip: u64) {
        self.pc = ip;
    }

    fn sp(&self) -> u64 {
        self.sp
    }

    fn is_compat(&self) -> bool {
        false
    }

    fn set_argument(&mut self, index: usize, value: u64) {
        self.x[index] = value;
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted().is_some()
    }

    fn woken_in(&mut self, nr: u64, args: &[u64; 6], ip: u64) {
        let args = *args;
        self.woken = Some(Woken { nr, args, ip });
    }

    fn left_to_kernel(&self, handler: bool) -> Self {
        match self.interrupted() {
            Some((woken, Interrupted::NoHandler | Interrupted::Block)) if handler => {
                self.over(&woken)
            }
            // Stopped by job control it returns a bare EINTR.
            Some((_, Interrupted::Eintr)) => self.as_it_is(),
            // Whether the handler wants it issued again is not known here.
            _ => self.resumed(),
        }
    }

    fn resumed(&self) -> Self {
        match self.interrupted() {
            // As `setup_restart_syscall` does it.
            Some((_, Interrupted::Block)) => {
                let mut regs = self.as_it_is();
                regs.x[NR] = RESTART_SYSCALL;
                regs
            }
            Some((woken, _)) => self.again(&woken),
            None => self.as_it_is(),
        }
    }

    fn reborn(&self, next: Next) -> Self {
        let Some((woken, how)) = self.interrupted() else {
            return self.as_it_is();
        };
        let again = match (how, next) {
            // What it was is not known any more: it was stopped and went on before.
            (Interrupted::Block, Next::Resume) => woken.nr != RESTART_SYSCALL,
            (_, Next::Resume) => true,
            (Interrupted::Restart, Next::Handler { restart }) => restart,
            (_, Next::Handler { .. }) => false,
        };
        if again {
            self.again(&woken)
        } else {
            self.over(&woken)
        }
    }

    fn timeout(&self) -> Option<Timeout> {
        let (woken, how) = self.interrupted()?;
        let mut timeout = TABLE.timeout(woken.nr, &woken.args)?;
        timeout.remembered = how == Interrupted::Block;
        Some(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOSLEEP: u64 = 101;
    const EPOLL_PWAIT: u64 = 22;
    const READ: u64 = 63;

    /// A thread that was stopped in a call, as the kernel shows it.
    fn stopped_in(nr: u64, rewound: bool) -> Arm64Regs {
        let mut regs = Arm64Regs::default();
        let args = [7, 0x200, 0, 900, 0, 0];
        regs.x[..6].copy_from_slice(&args);
        regs.x[NR] = nr;
        regs.pc = 0x1000;
        if !rewound {
            (regs.pc, regs.x[0]) = (0x1004, (-EINTR).cast_unsigned());
        }
        regs.woken_in(nr, &args, 0x1004);
        regs
    }

    fn state(regs: &Arm64Regs) -> (u64, i64, u64) {
        (regs.pc, regs.x[0].cast_signed(), regs.x[NR])
    }

    #[test]
    fn bytes_round_trip() {
        let regs = stopped_in(READ, true);
        assert_eq!(Arm64Regs::from_bytes(&regs.to_bytes()), Some(regs));
        assert_eq!(Arm64Regs::from_bytes(&[0; 8]), None);
    }

    #[test]
    fn a_rewound_call_is_issued_again_by_itself() {
        let regs = stopped_in(READ, true);
        assert_eq!(regs.resumed(), regs);
        assert_eq!(regs.reborn(Next::Resume), regs);
    }

    #[test]
    fn a_restart_block_lives_only_in_its_task() {
        let regs = stopped_in(NANOSLEEP, true);
        assert_eq!(state(&regs.resumed()), (0x1000, 7, RESTART_SYSCALL));
        assert_eq!(state(&regs.reborn(Next::Resume)), (0x1000, 7, NANOSLEEP));
        let again = stopped_in(RESTART_SYSCALL, true);
        assert_eq!(state(&again.resumed()), (0x1000, 7, RESTART_SYSCALL));
        assert_eq!(
            state(&again.reborn(Next::Resume)),
            (0x1004, -EINTR, RESTART_SYSCALL)
        );
    }

    #[test]
    fn a_handler_decides_as_in_the_kernel() {
        let (bare, restart) = (
            Next::Handler { restart: false },
            Next::Handler { restart: true },
        );
        let (read, sleep) = (stopped_in(READ, true), stopped_in(NANOSLEEP, true));
        assert_eq!(state(&read.reborn(bare)), (0x1004, -EINTR, READ));
        assert_eq!(state(&read.reborn(restart)), (0x1000, 7, READ));
        assert_eq!(state(&sleep.reborn(restart)), (0x1004, -EINTR, NANOSLEEP));
        assert_eq!(sleep.left_to_kernel(true), sleep.reborn(restart));
        assert_eq!(sleep.left_to_kernel(false), sleep.resumed());
    }

    #[test]
    fn a_bare_eintr_is_repeated_only_of_a_call_that_slept() {
        let regs = stopped_in(EPOLL_PWAIT, false);
        assert_eq!(state(&regs.resumed()), (0x1000, 7, EPOLL_PWAIT));
        assert_eq!(
            regs.timeout()
                .map(|timeout| (timeout.argument, timeout.value)),
            Some((3, 900))
        );
        assert_eq!(regs.left_to_kernel(false), regs);
        let unknown = Arm64Regs::from_bytes(&regs.to_bytes()).expect("its size");
        assert_eq!(unknown.resumed(), unknown);
        assert!(!unknown.is_interrupted());
        // close(2): the descriptor is gone already.
        assert!(!stopped_in(57, false).is_interrupted());
    }

    #[test]
    fn who_went_on_elsewhere_is_in_no_call() {
        let mut regs = stopped_in(READ, true);
        regs.set_ip(0x5000);
        assert!(!regs.is_interrupted());
    }
}
