//! VFP and NEON state: `struct user_vfp`.
//!
//! Not in it: FPEXC and the instruction registers behind it, which matter between a trap and its
//! handler in the kernel only.

/// `NT_ARM_VFP`: D0 to D31, FPSCR.
pub(crate) const NT_ARM_VFP: u32 = 0x400;
/// Bytes of it.
pub(crate) const VFP: usize = 32 * 8 + 4;
