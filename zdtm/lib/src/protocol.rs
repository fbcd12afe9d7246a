//! The conversation with the runner, all of it through files in `ZDTM_DIR`.
//!
//! | file | written by | meaning |
//! |---|---|---|
//! | `ready` | case | state is set up, dump me |
//! | `failures` | case and its children | one line per failed process |
//! | `result` | case | `PASS`, `FAIL why` or `SKIP why`; last thing it does |
//!
//! "Now check" is SIGTERM. The waiter sleeps in a futex on a static of ours, which is the plainest sleep there is:
//! no descriptor, no timer, and any thread may take the signal.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{Case, Context, Result, Skip};

static OVER: AtomicU32 = AtomicU32::new(0);
static DIR: OnceLock<PathBuf> = OnceLock::new();

/// The case's own directory: its working directory at the start, empty but for our files.
pub fn dir() -> &'static Path {
    DIR.get_or_init(|| {
        std::env::var_os("ZDTM_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
    })
}

/// Whether the runner asked to check. Cases that keep busy poll this.
pub fn over() -> bool {
    OVER.load(Ordering::SeqCst) != 0
}

/// Says that the state is set up. Atomic: the file appears with its content.
pub fn ready() -> Result<()> {
    let (temporary, name) = (dir().join("ready.new"), dir().join("ready"));
    fs::write(&temporary, std::process::id().to_string())?;
    fs::rename(temporary, name).context("tell the runner")
}

/// The word that [`wait`] sleeps on, for machine code that waits by itself: not zero once over.
pub fn over_word() -> *const u32 {
    OVER.as_ptr()
}

/// Sleeps until SIGTERM has been delivered to this process; from any thread.
pub fn wait() {
    while !over() {
        futex(libc::FUTEX_WAIT, 0);
    }
}

/// [`ready`], then [`wait`].
pub fn checkpoint() -> Result<()> {
    ready()?;
    wait();
    Ok(())
}

fn futex(operation: i32, value: u32) {
    // SAFETY: the word is a static, and neither operation writes to memory.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            OVER.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

extern "C" fn on_term(_: i32) {
    OVER.store(1, Ordering::SeqCst);
    // SAFETY: errno is this thread's own; a signal handler has to leave it as found.
    let errno = unsafe { *libc::__errno_location() };
    futex(libc::FUTEX_WAKE, u32::from(u16::MAX));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Runs one case to its verdict.
pub(crate) fn run(case: &Case) -> ExitCode {
    if let Err(error) = start() {
        eprintln!("cannot start: {error:#}");
        return ExitCode::from(2);
    }
    let verdict = match attempt(case.run) {
        Ok(()) => "PASS".to_owned(),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => format!("SKIP {reason}"),
            None => format!("FAIL {error:#}"),
        },
    };
    println!("{verdict}");
    let (temporary, name) = (dir().join("result.new"), dir().join("result"));
    let written = fs::write(&temporary, &verdict).and_then(|()| fs::rename(temporary, name));
    ExitCode::from(u8::from(written.is_err() || verdict.starts_with("FAIL")))
}

/// A panic is a failure like another: the runner wants its text.
pub(crate) fn attempt(run: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        anyhow::bail!("panic: {}", text.unwrap_or_default())
    })
}

/// The state every case starts from: own session, three descriptors, default signals, umask 022.
fn start() -> Result<()> {
    let _ = dir();
    // Fails for a group leader, which one is that was started by hand from a shell.
    let _ = nix::unistd::setsid();
    // SAFETY: nothing in this process owns a descriptor above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    for signal in
        Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP))
    {
        // SAFETY: the default action is no code of ours.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    let action = SigAction::new(
        SigHandler::Handler(on_term),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler stores an atomic and wakes a futex; both are async-signal-safe.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    SigSet::empty().thread_set_mask()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Makes a just forked child forget what its parent was told.
pub(crate) fn forget() {
    OVER.store(0, Ordering::SeqCst);
}

/// Records that the calling process failed, for the runner to show beside the root's verdict.
pub(crate) fn report(label: &str, error: &anyhow::Error) {
    let line = format!("{label} (pid {}): {error:#}\n", std::process::id());
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o666)
        .open(dir().join("failures"));
    if let Ok(mut file) = file {
        let _ = file.write_all(line.as_bytes());
    }
    eprint!("{line}");
}
