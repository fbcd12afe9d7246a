//! General registers: `struct pt_regs`, and the rules of syscall restart.
//!
//! The kernel has rewound an interrupted call when the tracer comes to see the registers: `do_signal` in
//! `arch/arm/kernel/signal.c`. So a thread that goes on with these registers issues the call again by
//! itself. What it was is known only of a thread that slept in it ([`Regs::woken_in`]).
//!
//! The number of a call is in r7, which a call keeps, and programs rely on that. So no call goes on by
//! `restart_syscall` here, whose number would stay behind: it is issued anew with what is left of its time.

use criu_arch::{Interrupted, Next, Regs, Timeout, Woken};

use crate::restart::TABLE;

/// `struct pt_regs`.
#[derive(Clone, Debug, Default)]
pub struct ArmRegs {
    /// r0 to r15.
    pub r: [u32; 16],
    /// Flags and mode.
    pub cpsr: u32,
    /// The first argument of the call it is in.
    pub orig_r0: u32,
    pub(crate) woken: Option<Woken>,
}

/// What it was woken in is no register.
impl PartialEq for ArmRegs {
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

/// The register of the number of a call.
pub(crate) const NR: usize = 7;
/// The stack pointer.
const SP: usize = 13;
/// The program counter.
pub(crate) const PC: usize = 15;
/// The flag of Thumb code.
pub(crate) const THUMB: u32 = 1 << 5;

const EINTR: i32 = 4;
const RESTART_SYSCALL: u64 = 0;

impl ArmRegs {
    fn words(&self) -> [u32; 18] {
        let mut words = [0; 18];
        words[..16].copy_from_slice(&self.r);
        (words[16], words[17]) = (self.cpsr, self.orig_r0);
        words
    }

    /// Length of `svc`.
    fn syscall_len(&self) -> u32 {
        if self.cpsr & THUMB == 0 { 4 } else { 2 }
    }

    /// The call that only the stop interrupted, and how it said so.
    fn interrupted(&self) -> Option<(Woken, Interrupted)> {
        // A call that goes on by restart_syscall has its own number in r7 still.
        let own = |woken: &Woken| woken.nr == u64::from(self.r[NR]) || woken.nr == RESTART_SYSCALL;
        let woken = self.woken.filter(own)?;
        if u64::from(self.r[PC] + self.syscall_len()) == woken.ip {
            let nr = self.r[NR].into();
            return Some((woken, TABLE.rewound(nr, &woken.args)));
        }
        let bare = u64::from(self.r[PC]) == woken.ip && self.r[0].cast_signed() == -EINTR;
        (bare && TABLE.may_be_repeated(woken.nr)).then_some((woken, Interrupted::Eintr))
    }

    fn again(&self, woken: &Woken) -> Self {
        let mut regs = self.as_it_is();
        let ip = u32::try_from(woken.ip).unwrap_or(0);
        regs.r[PC] = ip - self.syscall_len();
        regs.r[0] = u32::try_from(woken.args[0]).unwrap_or(0);
        regs
    }

    fn over(&self, woken: &Woken) -> Self {
        let mut regs = self.as_it_is();
        regs.r[PC] = u32::try_from(woken.ip).unwrap_or(0);
        regs.r[0] = (-EINTR).cast_unsigned();
        regs
    }

    fn as_it_is(&self) -> Self {
        let mut regs = self.clone();
        regs.woken = None;
        regs
    }
}

impl Regs for ArmRegs {
    const SIZE: usize = 18 * 4;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let mut words = [0; 18];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes(chunk.try_into().ok()?);
        }
        let mut regs = Self::default();
        regs.r.copy_from_slice(&words[..16]);
        (regs.cpsr, regs.orig_r0) = (words[16], words[17]);
        Some(regs)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn ip(&self) -> u64 {
        self.r[PC].into()
    }

    fn set_ip(&mut self, ip: u64) {
        self.r[PC] = u32::try_from(ip).unwrap_or(0);
    }

    fn sp(&self) -> u64 {
        self.r[SP].into()
    }

    fn is_compat(&self) -> bool {
        false
    }

    fn set_argument(&mut self, index: usize, value: u64) {
        self.r[index] = u32::try_from(value).unwrap_or(0);
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
            // As it is: job control leaves a bare EINTR, and whether a handler wants it issued again is
            // not known here.
            _ => self.as_it_is(),
        }
    }

    fn resumed(&self) -> Self {
        match self.interrupted() {
            Some((woken, Interrupted::Eintr)) => self.again(&woken),
            _ => self.as_it_is(),
        }
    }

    fn reborn(&self, next: Next) -> Self {
        let Some((woken, how)) = self.interrupted() else {
            return self.as_it_is();
        };
        let again = match (how, next) {
            (Interrupted::Eintr, Next::Resume) => return self.again(&woken),
            (_, Next::Resume) => true,
            (Interrupted::Restart, Next::Handler { restart }) => restart,
            (_, Next::Handler { .. }) => false,
        };
        if again {
            self.as_it_is()
        } else {
            self.over(&woken)
        }
    }

    fn timeout(&self) -> Option<Timeout> {
        self.interrupted()?;
        let mut args = [0; 6];
        for (slot, word) in args.iter_mut().zip(self.r) {
            *slot = word.into();
        }
        if let Some((woken, Interrupted::Eintr)) = self.interrupted() {
            args[0] = woken.args[0];
        }
        TABLE.timeout(self.r[NR].into(), &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOSLEEP: u32 = 162;
    const EPOLL_WAIT: u32 = 252;
    const READ: u32 = 3;

    /// A thread that was stopped in a call, as the kernel shows it.
    fn stopped_in(nr: u32, rewound: bool, thumb: bool) -> ArmRegs {
        let mut regs = ArmRegs::default();
        let args = [7, 0x200, 0, 900, 0, 0];
        for (slot, arg) in regs.r.iter_mut().zip(args) {
            *slot = arg;
        }
        regs.r[NR] = nr;
        regs.cpsr = if thumb { 0x30 } else { 0x10 };
        regs.r[PC] = 0x1004;
        if rewound {
            regs.r[PC] -= regs.syscall_len();
        } else {
            regs.r[0] = (-EINTR).cast_unsigned();
        }
        regs.woken_in(nr.into(), &args.map(u64::from), 0x1004);
        regs
    }

    fn state(regs: &ArmRegs) -> (u32, i32, u32) {
        (regs.r[PC], regs.r[0].cast_signed(), regs.r[NR])
    }

    #[test]
    fn bytes_round_trip() {
        let regs = stopped_in(READ, true, false);
        assert_eq!(ArmRegs::from_bytes(&regs.to_bytes()), Some(regs));
        assert_eq!(ArmRegs::from_bytes(&[0; 8]), None);
    }

    #[test]
    fn a_rewound_call_is_issued_again_by_itself() {
        for thumb in [false, true] {
            let regs = stopped_in(READ, true, thumb);
            assert!(regs.is_interrupted());
            assert_eq!(regs.resumed(), regs);
            assert_eq!(regs.reborn(Next::Resume), regs);
        }
    }

    #[test]
    fn a_call_with_a_restart_block_is_issued_anew() {
        let mut regs = stopped_in(NANOSLEEP, true, true);
        assert_eq!(state(&regs.resumed()), (0x1002, 7, NANOSLEEP));
        let timeout = regs.timeout().expect("it sleeps");
        assert_eq!((timeout.argument, timeout.remembered), (0, false));
        // The second time /proc knows it as restart_syscall.
        regs.woken_in(0, &[7, 0x200, 0, 900, 0, 0], 0x1004);
        assert!(regs.timeout().is_some());
        assert_eq!(regs.reborn(Next::Resume), regs);
    }

    #[test]
    fn a_handler_decides_as_in_the_kernel() {
        let (bare, restart) = (
            Next::Handler { restart: false },
            Next::Handler { restart: true },
        );
        let read = stopped_in(READ, true, true);
        let sleep = stopped_in(NANOSLEEP, true, false);
        assert_eq!(state(&read.reborn(bare)), (0x1004, -EINTR, READ));
        assert_eq!(state(&read.reborn(restart)), (0x1002, 7, READ));
        assert_eq!(state(&sleep.reborn(restart)), (0x1004, -EINTR, NANOSLEEP));
        assert_eq!(sleep.left_to_kernel(true), sleep.reborn(restart));
        assert_eq!(sleep.left_to_kernel(false), sleep);
    }

    #[test]
    fn a_bare_eintr_is_repeated_only_of_a_call_that_slept() {
        let regs = stopped_in(EPOLL_WAIT, false, true);
        assert_eq!(state(&regs.resumed()), (0x1002, 7, EPOLL_WAIT));
        assert_eq!(
            regs.timeout()
                .map(|timeout| (timeout.argument, timeout.value)),
            Some((3, 900))
        );
        let unknown = ArmRegs::from_bytes(&regs.to_bytes()).expect("its size");
        assert_eq!(unknown.resumed(), unknown);
        assert!(!stopped_in(6, false, true).is_interrupted(), "close");
    }
}
