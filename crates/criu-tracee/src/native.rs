//! The machine this build runs on: the one file that asks.

/// The architecture of the tracer.
#[cfg(target_arch = "x86_64")]
pub type Native = criu_arch_x86_64::X86_64;

/// Its registers.
pub type NativeRegs = <Native as criu_arch::Arch>::Regs;
