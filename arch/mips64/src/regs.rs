//! General registers: `struct user_pt_regs`, and the rules of syscall restart.
//!
//! A call that was interrupted is issued again, whatever the kernel would have done after a signal: the
//! tracer's stop is none. That holds for the calls of `restart.rs` too, for which the kernel has only a
//! plain `EINTR`.
//!
//! A call fails with a positive error in v0 and a flag in a3. Where it does, the kernel keeps its number in
//! r0 and its fourth argument, which the flag has replaced, in k0; r0 is 0 everywhere else.
//!
//! `arch/mips/kernel/ptrace.c` (`ptrace_getregs`), `arch/mips/kernel/signal.c` (`do_signal`),
//! `arch/mips/kernel/scall64-n64.S`.

use criu_arch::{Next, Regs, Timeout};

use crate::restart::TABLE;

const V0: usize = 2;
const A0: usize = 4;
const A3: usize = 7;
const K0: usize = 26;
const SP: usize = 29;

/// `struct user_pt_regs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mips64Regs {
    /// r0 to r31. The kernel has its own use for those that a program cannot set: r0, k0, k1.
    pub r: [u64; 32],
    /// The low half of a product, or a quotient.
    pub lo: u64,
    /// The high half, or a remainder.
    pub hi: u64,
    /// The instruction pointer: of the branch, if the thread stands in its delay slot.
    pub epc: u64,
    /// The address that could not be accessed; not written back.
    pub badvaddr: u64,
    /// Status of the processor; not written back.
    pub status: u64,
    /// Why the kernel was entered; not written back.
    pub cause: u64,
}

const SYSCALL_LEN: u64 = 4;

const EINTR: u64 = 4;
const ERESTARTSYS: u64 = 512;
const ERESTARTNOINTR: u64 = 513;
const ERESTARTNOHAND: u64 = 514;
const ERESTART_RESTARTBLOCK: u64 = 516;

const RESTART_SYSCALL: u64 = 5213;

impl Mips64Regs {
    /// The error with which the call that the thread was stopped in says that it was only interrupted;
    /// `None` outside a call, and after one that has come to an end.
    fn interrupted(&self) -> Option<u64> {
        if self.r[0] == 0 || self.r[A3] == 0 {
            return None;
        }
        match self.r[V0] {
            error @ (ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK) => {
                Some(error)
            }
            EINTR if TABLE.may_be_repeated(self.nr()) => Some(EINTR),
            _ => None,
        }
    }

    /// The number of the call it is in.
    fn nr(&self) -> u64 {
        self.r[0]
    }

    fn is_restart(&self) -> bool {
        self.nr() == RESTART_SYSCALL
    }

    fn arguments(&self) -> [u64; 6] {
        let mut arguments = [0; 6];
        arguments.copy_from_slice(&self.r[A0..A0 + 6]);
        arguments[A3 - A0] = self.r[K0];
        arguments
    }

    fn again(mut self, nr: u64) -> Self {
        self.r[V0] = nr;
        self.r[A3] = self.r[K0];
        self.epc -= SYSCALL_LEN;
        self
    }

    /// Whether the kernel alone knows how the interrupted call goes on.
    pub(crate) fn is_in_block(&self) -> bool {
        self.interrupted() == Some(ERESTART_RESTARTBLOCK)
    }
}

impl Regs for Mips64Regs {
    const SIZE: usize = 38 * 8;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let mut words = [0; 38];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let (r, [lo, hi, epc, badvaddr, status, cause]) = words.split_first_chunk::<32>()? else {
            return None;
        };
        Some(Self {
            r: *r,
            lo: *lo,
            hi: *hi,
            epc: *epc,
            badvaddr: *badvaddr,
            status: *status,
            cause: *cause,
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let rest = [
            self.lo,
            self.hi,
            self.epc,
            self.badvaddr,
            self.status,
            self.cause,
        ];
        self.r
            .iter()
            .chain(&rest)
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn ip(&self) -> u64 {
        self.epc
    }

    fn set_ip(&mut self, ip: u64) {
        self.epc = ip;
    }

    fn sp(&self) -> u64 {
        self.r[SP]
    }

    fn is_compat(&self) -> bool {
        false
    }

    fn set_argument(&mut self, index: usize, value: u64) {
        self.r[A0 + index] = value;
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted().is_some()
    }

    /// The registers tell by themselves (r0).
    fn woken_in(&mut self, _: u64, _: &[u64; 6], _: u64) {}

    fn left_to_kernel(&self, _: bool) -> Self {
        self.clone()
    }

    fn resumed(&self) -> Self {
        let mut regs = match self.interrupted() {
            Some(ERESTART_RESTARTBLOCK) => self.clone().again(RESTART_SYSCALL),
            Some(_) => self.clone().again(self.nr()),
            None => self.clone(),
        };
        regs.r[0] = 0;
        regs
    }

    /// `handle_signal`, `do_signal`.
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
        let mut regs = self.clone();
        match interrupted {
            Some(_) if again => regs = regs.again(self.nr()),
            Some(_) => regs.r[V0] = EINTR,
            None => {}
        }
        regs.r[0] = 0;
        regs
    }

    fn timeout(&self) -> Option<Timeout> {
        let result = self.interrupted()?;
        let mut timeout = TABLE.timeout(self.nr(), &self.arguments())?;
        timeout.remembered = result == ERESTART_RESTARTBLOCK;
        Some(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(nr: u64, error: u64) -> Mips64Regs {
        let mut regs = Mips64Regs {
            epc: 0x1004,
            ..Mips64Regs::default()
        };
        (regs.r[0], regs.r[V0], regs.r[A3], regs.r[K0]) = (nr, error, 1, 33);
        regs
    }

    #[test]
    fn bytes_round_trip() {
        let mut regs = stopped_in(5007, ERESTARTSYS);
        (regs.r[31], regs.lo, regs.cause) = (1, 2, 3);
        assert_eq!(Mips64Regs::from_bytes(&regs.to_bytes()), Some(regs));
        assert_eq!(Mips64Regs::from_bytes(&[0; 8]), None);
    }

    #[test]
    fn an_interrupted_call_is_issued_again() {
        let regs = stopped_in(5000, ERESTARTSYS).resumed();
        assert_eq!((regs.epc, regs.r[V0], regs.r[0]), (0x1000, 5000, 0));
        // The flag goes, and the argument comes back.
        assert_eq!(regs.r[A3], 33);
    }

    #[test]
    fn a_restart_block_lives_only_in_its_task() {
        let regs = stopped_in(5034, ERESTART_RESTARTBLOCK);
        let resumed = regs.resumed();
        assert_eq!((resumed.epc, resumed.r[V0]), (0x1000, RESTART_SYSCALL));
        assert!(regs.is_in_block() && !resumed.is_in_block());
        assert_eq!(reborn(&regs, Next::Resume), (0x1000, 5034));
        let regs = stopped_in(RESTART_SYSCALL, ERESTART_RESTARTBLOCK);
        assert_eq!(reborn(&regs, Next::Resume), (0x1004, EINTR));
    }

    fn reborn(regs: &Mips64Regs, next: Next) -> (u64, u64) {
        let regs = regs.reborn(next);
        assert_eq!(regs.r[0], 0);
        (regs.epc, regs.r[V0])
    }

    #[test]
    fn a_handler_decides_as_in_the_kernel() {
        let (bare, restart) = (
            Next::Handler { restart: false },
            Next::Handler { restart: true },
        );
        let over = (0x1004, EINTR);
        assert_eq!(reborn(&stopped_in(5000, ERESTARTSYS), bare), over);
        assert_eq!(
            reborn(&stopped_in(5000, ERESTARTSYS), restart),
            (0x1000, 5000)
        );
        assert_eq!(
            reborn(&stopped_in(5000, ERESTARTNOINTR), bare),
            (0x1000, 5000)
        );
        assert_eq!(reborn(&stopped_in(5033, ERESTARTNOHAND), restart), over);
        assert_eq!(
            reborn(&stopped_in(5034, ERESTART_RESTARTBLOCK), restart),
            over
        );
        assert_eq!(reborn(&stopped_in(5209, EINTR), restart), over);
    }

    #[test]
    fn a_bare_eintr_is_repeated_where_nobody_has_written_anything() {
        assert_eq!(
            reborn(&stopped_in(5209, EINTR), Next::Resume),
            (0x1000, 5209)
        );
        assert_eq!(stopped_in(5209, EINTR).resumed().epc, 0x1000);
        // close(2): the descriptor is gone already.
        assert_eq!(stopped_in(5003, EINTR).resumed().epc, 0x1004);
    }

    #[test]
    fn a_timeout_is_an_argument() {
        let mut regs = stopped_in(5209, EINTR);
        regs.r[K0] = 1200;
        let timeout = regs.timeout().expect("epoll_wait");
        assert_eq!((timeout.argument, timeout.value), (3, 1200));
        regs.set_argument(3, 5);
        assert_eq!(regs.r[A3], 5);
    }

    #[test]
    fn outside_a_call_nothing_moves() {
        let mut regs = stopped_in(0, ERESTARTSYS);
        assert_eq!(regs.resumed(), regs);
        // A call may give 512: it read so many bytes.
        (regs.r[0], regs.r[A3]) = (5000, 0);
        assert_eq!(regs.resumed().epc, regs.epc);
    }
}
