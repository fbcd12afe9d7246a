//! Signal actions, masks and alternate stacks.

use std::sync::atomic::{AtomicUsize, Ordering};

use libc::c_int;
use zdtm::{Case, Mapping, PAGE, Result, Team, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("sigaction", actions),
    Case::new("sigmask-threads", masks),
    Case::new("sigaltstack", altstack),
    Case::new("sigaltstack-inside", inside).stays(FRAME),
];

/// What a handler returns by is what the kernel has written: on 32-bit ARM one with `CONFIG_IWMMXT` leaves room that one
/// without does not take.
const FRAME: &str = if matches!(std::env::consts::ARCH.as_bytes(), b"arm") {
    "it is inside of a handler, and kernels differ in CONFIG_IWMMXT"
} else {
    ""
};

/// Every signal whose action can be set: libc keeps 32 and 33 to itself.
fn numbers() -> impl Iterator<Item = c_int> {
    (1..=64)
        .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGTERM, 32, 33].contains(signal))
}

/// A signal's action as the kernel has it: handler, flags, mask.
fn action(signal: c_int) -> Result<(usize, c_int, Vec<c_int>)> {
    // SAFETY: all zeroes is a valid sigaction to be written over.
    let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks.
    ret(unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut found) })?;
    // SAFETY: the mask has been written by the call above.
    let mask = (1..=64)
        .filter(|signal| unsafe { libc::sigismember(&raw const found.sa_mask, *signal) } == 1);
    Ok((found.sa_sigaction, found.sa_flags, mask.collect()))
}

static HITS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(signal: c_int) {
    HITS.fetch_add(usize::try_from(signal).unwrap_or(0), Ordering::SeqCst);
}

extern "C" fn count_info(signal: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo that lives through the handler.
    if unsafe { (*info).si_signo } == signal {
        count(signal);
    }
}

/// All of them, each with another combination of handler, flags and mask.
fn actions() -> Result<()> {
    let flags = [
        libc::SA_RESTART,
        libc::SA_NODEFER,
        libc::SA_NOCLDSTOP,
        libc::SA_ONSTACK,
        libc::SA_NOCLDWAIT,
    ];
    for signal in numbers() {
        // SAFETY: all zeroes is a valid sigaction: the default, no flags, no mask.
        let mut wanted: libc::sigaction = unsafe { std::mem::zeroed() };
        wanted.sa_flags = flags
            .iter()
            .enumerate()
            .filter(|(bit, _)| signal >> bit & 1 != 0)
            .fold(0, |all, (_, flag)| all | flag);
        match signal % 4 {
            0 => wanted.sa_sigaction = libc::SIG_DFL,
            1 => wanted.sa_sigaction = libc::SIG_IGN,
            2 => wanted.sa_sigaction = count as *const () as usize,
            _ => {
                wanted.sa_sigaction = count_info as *const () as usize;
                wanted.sa_flags |= libc::SA_SIGINFO;
            }
        }
        // SAFETY: the mask is ours; the handlers touch an atomic only.
        unsafe {
            libc::sigaddset(&raw mut wanted.sa_mask, 64 - signal % 30);
            ret(libc::sigaction(
                signal,
                &raw const wanted,
                std::ptr::null_mut(),
            ))?;
        }
    }
    let before = numbers().map(action).collect::<Result<Vec<_>>>()?;
    zdtm::checkpoint()?;
    for (signal, before) in numbers().zip(before) {
        check_eq!(action(signal)?, before, "signal {signal}");
    }
    let handled: Vec<c_int> = numbers().filter(|signal| signal % 4 >= 2).collect();
    for signal in &handled {
        // SAFETY: a handler is installed.
        ret(unsafe { libc::raise(*signal) })?;
    }
    check_eq!(
        HITS.load(Ordering::SeqCst),
        usize::try_from(handled.iter().sum::<c_int>())?
    );
    Ok(())
}

fn blocked() -> Vec<c_int> {
    // SAFETY: the set is written by the call before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
        (1..=64)
            .filter(|signal| libc::sigismember(&raw const set, *signal) == 1)
            .collect()
    }
}

/// Each thread blocks other signals, among them the last and the real-time ones.
fn masks() -> Result<()> {
    let team = Team::start(8, |index, set_up| {
        // SAFETY: the set is ours.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            for signal in numbers().skip(index).step_by(index + 2) {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        }
        let before = blocked();
        set_up();
        zdtm::wait();
        check_eq!(blocked(), before);
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!(blocked(), Vec::<c_int>::new());
    team.join()?;
    Ok(())
}

fn set_altstack(stack: &Mapping) -> Result<()> {
    let wanted = libc::stack_t {
        ss_sp: stack.pointer().cast(),
        ss_flags: 0,
        ss_size: stack.length(),
    };
    // SAFETY: the mapping stays for ever.
    ret(unsafe { libc::sigaltstack(&raw const wanted, std::ptr::null_mut()) })?;
    Ok(())
}

fn get_altstack() -> Result<(usize, c_int, usize)> {
    // SAFETY: all zeroes is a valid stack_t to be written over.
    let mut found: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: a null new stack only asks.
    ret(unsafe { libc::sigaltstack(std::ptr::null(), &raw mut found) })?;
    Ok((found.ss_sp.addr(), found.ss_flags, found.ss_size))
}

static ON_STACK: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note_stack(_: c_int) {
    let local = 0u8;
    ON_STACK.store((&raw const local).addr(), Ordering::SeqCst);
}

fn on_altstack(handler: extern "C" fn(c_int), signal: c_int) -> Result<()> {
    // SAFETY: all zeroes is a valid sigaction.
    let mut wanted: libc::sigaction = unsafe { std::mem::zeroed() };
    wanted.sa_sigaction = handler as *const () as usize;
    wanted.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handlers used here touch atomics, or wait in a futex.
    ret(unsafe { libc::sigaction(signal, &raw const wanted, std::ptr::null_mut()) })?;
    Ok(())
}

/// An alternate stack per thread, used after the restore.
fn altstack() -> Result<()> {
    on_altstack(note_stack, libc::SIGUSR1)?;
    let turn = std::sync::Arc::new(std::sync::Mutex::new(()));
    let team = Team::start(4, move |index, set_up| {
        let stack = Mapping::anonymous((8 + index) * PAGE)?;
        set_altstack(&stack)?;
        let before = get_altstack()?;
        set_up();
        zdtm::wait();
        check_eq!(get_altstack()?, before);
        let _turn = turn
            .lock()
            .or_else(|_| zdtm::bail!("another thread failed"))?;
        // SAFETY: the handler is installed.
        ret(unsafe { libc::raise(libc::SIGUSR1) })?;
        let used = ON_STACK.load(Ordering::SeqCst);
        check!(
            (stack.address()..stack.address() + stack.length()).contains(&used),
            "ran at {used:#x}, not on its stack"
        );
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    Ok(())
}

static INSIDE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn wait_inside(signal: c_int) {
    note_stack(signal);
    INSIDE.store(1, Ordering::SeqCst);
    zdtm::wait();
    INSIDE.store(2, Ordering::SeqCst);
}

/// Dumped while a handler runs on the alternate stack.
fn inside() -> Result<()> {
    on_altstack(wait_inside, libc::SIGUSR1)?;
    let thread = std::thread::spawn(|| -> Result<usize> {
        let stack = Mapping::anonymous(16 * PAGE)?;
        set_altstack(&stack)?;
        let before = get_altstack()?;
        // SAFETY: the handler is installed. This returns when all is over.
        ret(unsafe { libc::raise(libc::SIGUSR1) })?;
        check_eq!(get_altstack()?, before);
        Ok(stack.address())
    });
    while INSIDE.load(Ordering::SeqCst) != 1 {
        std::thread::yield_now();
    }
    zdtm::checkpoint()?;
    let stack = thread
        .join()
        .or_else(|_| zdtm::bail!("the thread panicked"))??;
    check_eq!(INSIDE.load(Ordering::SeqCst), 2);
    let used = ON_STACK.load(Ordering::SeqCst);
    check!((stack..stack + 16 * PAGE).contains(&used));
    Ok(())
}
