//! The requests of ptrace(2), each as a function of a thread id.
//!
//! This file may be unsafe because `ptrace` takes addresses: every function here passes a buffer it
//! owns or borrows, with its true length.
#![allow(unsafe_code, reason = "ptrace(2) takes raw addresses")]

use criu_arch::{Arch, SetArea};
use nix::errno::Errno;
use nix::unistd::Pid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};
use crate::native::Native;

/// Options and requests that libc does not name everywhere.
pub(crate) const O_TRACESYSGOOD: usize = 1;
pub(crate) const O_EXITKILL: usize = 1 << 20;
pub(crate) const O_SUSPEND_SECCOMP: usize = 1 << 21;

const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const PEEKSIGINFO: u32 = 0x4209;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const SECCOMP_GET_FILTER: u32 = 0x420c;
const SECCOMP_GET_METADATA: u32 = 0x420d;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;

const PEEKSIGINFO_SHARED: u32 = 1;

/// A `siginfo_t` as the kernel moves it: 128 bytes, of which signal number and code are read here.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct SigInfo {
    bytes: [u8; 128],
}

impl SigInfo {
    /// All 128 bytes.
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.bytes
    }

    /// From the bytes of an image.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
        })
    }

    /// The signal.
    pub fn signal(&self) -> i32 {
        self.int(0)
    }

    /// `si_code`.
    pub fn code(&self) -> i32 {
        self.int(Native::SIGINFO.code)
    }

    /// `si_pid` of a signal that a process sent.
    pub fn sender(&self) -> i32 {
        self.int(Native::SIGINFO.sender)
    }

    fn int(&self, at: usize) -> i32 {
        i32::from_ne_bytes([
            self.bytes[at],
            self.bytes[at + 1],
            self.bytes[at + 2],
            self.bytes[at + 3],
        ])
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigInfo")
            .field("signal", &self.signal())
            .field("code", &self.code())
            .finish_non_exhaustive()
    }
}

/// `struct ptrace_rseq_configuration`, Linux 5.13.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RseqConfiguration {
    /// Address of the registered area, or 0.
    pub rseq_abi_pointer: u64,
    /// Its size.
    pub rseq_abi_size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Always 0.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}

fn request(call: &'static str, request: u32, tid: Pid, addr: usize, data: usize) -> Result<i64> {
    // SAFETY: only this file calls it, and each caller passes numbers or the address of a live buffer
    // of the size that the request needs.
    let ret = unsafe { libc::ptrace(request as _, tid.as_raw(), addr, data) };
    match Errno::result(ret) {
        #[allow(
            clippy::useless_conversion,
            reason = "a long has 32 bits on 32-bit machines"
        )]
        Ok(value) => Ok(value.into()),
        Err(Errno::ESRCH) => Err(Error::Gone(tid)),
        Err(errno) => Err(Error::Kernel { call, errno }),
    }
}

pub(crate) fn seize(tid: Pid, options: usize) -> Result<()> {
    request("ptrace(PTRACE_SEIZE)", SEIZE, tid, 0, options).map(drop)
}

pub(crate) fn set_options(tid: Pid, options: usize) -> Result<()> {
    request(
        "ptrace(PTRACE_SETOPTIONS)",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        options,
    )
    .map(drop)
}

pub(crate) fn interrupt(tid: Pid) -> Result<()> {
    request("ptrace(PTRACE_INTERRUPT)", INTERRUPT, tid, 0, 0).map(drop)
}

pub(crate) fn cont(tid: Pid, signal: i32) -> Result<()> {
    request(
        "ptrace(PTRACE_CONT)",
        libc::PTRACE_CONT,
        tid,
        0,
        signal as usize,
    )
    .map(drop)
}

pub(crate) fn syscall(tid: Pid) -> Result<()> {
    request("ptrace(PTRACE_SYSCALL)", libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

pub(crate) fn detach(tid: Pid, signal: i32) -> Result<()> {
    request(
        "ptrace(PTRACE_DETACH)",
        libc::PTRACE_DETACH,
        tid,
        0,
        signal as usize,
    )
    .map(drop)
}

pub(crate) fn getregs(tid: Pid, bytes: &mut [u8]) -> Result<()> {
    request(
        "ptrace(PTRACE_GETREGS)",
        12,
        tid,
        0,
        bytes.as_mut_ptr().expose_provenance(),
    )
    .map(drop)
}

pub(crate) fn setregs(tid: Pid, bytes: &[u8]) -> Result<()> {
    request(
        "ptrace(PTRACE_SETREGS)",
        13,
        tid,
        0,
        bytes.as_ptr().expose_provenance(),
    )
    .map(drop)
}

/// Reads a regset into `bytes`; gives how much of it the kernel filled.
pub(crate) fn getregset(tid: Pid, note: u32, bytes: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let at = (&raw mut iov).expose_provenance();
    request(
        "ptrace(PTRACE_GETREGSET)",
        GETREGSET,
        tid,
        note as usize,
        at,
    )?;
    Ok(iov.iov_len)
}

pub(crate) fn setregset(tid: Pid, note: u32, bytes: &[u8]) -> Result<()> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let at = (&raw mut iov).expose_provenance();
    request(
        "ptrace(PTRACE_SETREGSET)",
        SETREGSET,
        tid,
        note as usize,
        at,
    )
    .map(drop)
}

pub(crate) fn get_thread_area(tid: Pid, slot: u32) -> Result<Vec<u8>> {
    let areas = Native::TLS;
    let mut bytes = vec![0; areas.size];
    let at = bytes.as_mut_ptr().expose_provenance();
    let call = "ptrace(PTRACE_GET_THREAD_AREA)";
    request(call, areas.get, tid, slot as usize, at)?;
    Ok(bytes)
}

pub(crate) fn set_thread_area(tid: Pid, slot: u32, bytes: &[u8]) -> Result<()> {
    let call = "ptrace(PTRACE_SET_THREAD_AREA)";
    if bytes.len() != Native::TLS.size {
        return Err(Error::Kernel {
            call,
            errno: Errno::EINVAL,
        });
    }
    let slot = slot as usize;
    match Native::TLS.set {
        SetArea::From(number) => {
            let at = bytes.as_ptr().expose_provenance();
            request(call, number, tid, slot, at).map(drop)
        }
        SetArea::Value(number) => {
            let mut word = [0; size_of::<usize>()];
            word.copy_from_slice(bytes);
            request(call, number, tid, slot, usize::from_ne_bytes(word)).map(drop)
        }
        SetArea::Itself => Ok(()),
    }
}

pub(crate) fn getsigmask(tid: Pid, mask: &mut [u8]) -> Result<()> {
    let at = mask.as_mut_ptr().expose_provenance();
    request("ptrace(PTRACE_GETSIGMASK)", GETSIGMASK, tid, mask.len(), at).map(drop)
}

pub(crate) fn setsigmask(tid: Pid, mask: &[u8]) -> Result<()> {
    let at = mask.as_ptr().expose_provenance();
    request("ptrace(PTRACE_SETSIGMASK)", SETSIGMASK, tid, mask.len(), at).map(drop)
}

pub(crate) fn getsiginfo(tid: Pid) -> Result<SigInfo> {
    let mut info = SigInfo { bytes: [0; 128] };
    let at = info.bytes.as_mut_ptr().expose_provenance();
    request(
        "ptrace(PTRACE_GETSIGINFO)",
        libc::PTRACE_GETSIGINFO,
        tid,
        0,
        at,
    )?;
    Ok(info)
}

/// Sends a signal to one thread: `tgkill(2)`.
pub(crate) fn tgkill(process: Pid, thread: Pid, signal: i32) -> Result<()> {
    // SAFETY: numbers only.
    let sent =
        unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), thread.as_raw(), signal) };
    match Errno::result(sent) {
        Ok(_) => Ok(()),
        Err(Errno::ESRCH) => Err(Error::Gone(thread)),
        Err(errno) => Err(Error::Kernel {
            call: "tgkill",
            errno,
        }),
    }
}

/// The queued signals of a thread, or those its process shares, oldest first.
pub(crate) fn peeksiginfo(tid: Pid, shared: bool) -> Result<Vec<SigInfo>> {
    const BATCH: usize = 32;
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut all = Vec::new();
    loop {
        let mut batch = [SigInfo { bytes: [0; 128] }; BATCH];
        let flags = if shared { PEEKSIGINFO_SHARED } else { 0 };
        let args = Args {
            off: all.len() as u64,
            flags,
            nr: 32,
        };
        let got = request(
            "ptrace(PTRACE_PEEKSIGINFO)",
            PEEKSIGINFO,
            tid,
            (&raw const args).expose_provenance(),
            batch.as_mut_ptr().expose_provenance(),
        )?;
        let got = usize::try_from(got).unwrap_or(0).min(BATCH);
        all.extend_from_slice(&batch[..got]);
        if got < BATCH {
            return Ok(all);
        }
    }
}

/// `EINVAL` from kernels before 5.13.
pub(crate) fn rseq_configuration(tid: Pid) -> Result<RseqConfiguration> {
    let mut conf = RseqConfiguration::default();
    let at = conf.as_mut_bytes().as_mut_ptr().expose_provenance();
    request(
        "ptrace(PTRACE_GET_RSEQ_CONFIGURATION)",
        GET_RSEQ_CONFIGURATION,
        tid,
        size_of_val(&conf),
        at,
    )?;
    Ok(conf)
}

/// The BPF code of filter `index` (0 is the oldest), 8 bytes an instruction, with its flags;
/// `None` past the last.
pub(crate) fn seccomp_filter(tid: Pid, index: u64) -> Result<Option<(Vec<u8>, u64)>> {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    let count = match request(
        "ptrace(PTRACE_SECCOMP_GET_FILTER)",
        SECCOMP_GET_FILTER,
        tid,
        at,
        0,
    ) {
        Ok(count) => usize::try_from(count).unwrap_or(0),
        Err(Error::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut code = vec![0; count * 8];
    let to = code.as_mut_ptr().expose_provenance();
    request(
        "ptrace(PTRACE_SECCOMP_GET_FILTER)",
        SECCOMP_GET_FILTER,
        tid,
        at,
        to,
    )?;
    let mut metadata = [index, 0u64];
    let to = metadata.as_mut_ptr().expose_provenance();
    request(
        "ptrace(PTRACE_SECCOMP_GET_METADATA)",
        SECCOMP_GET_METADATA,
        tid,
        16,
        to,
    )?;
    Ok(Some((code, metadata[1])))
}
