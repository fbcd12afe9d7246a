//! Between the state of a thread and its core image.

use criu_image::pb;

use crate::{Arch, ThreadState};

/// Why state and image do not fit each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// The image has no field for it, or this processor has no such state.
    #[error("{0}")]
    Unsupported(String),
    /// The image is of another machine.
    #[error("a task of machine {0}")]
    Machine(i32),
    /// The image lacks a message.
    #[error("no {0}")]
    Missing(&'static str),
    /// A field has the wrong number of elements.
    #[error("{field} has {got} elements instead of {want}")]
    Length {
        /// Which field.
        field: &'static str,
        /// How many there are.
        got: usize,
        /// How many there should be.
        want: usize,
    },
}

/// Registers to and from `core-*.img`.
pub trait CoreImage: Arch {
    /// Writes the machine and its registers into `core`. They are stored as a new task takes them on
    /// ([`crate::Regs::reborn`]) that has no handler to run first.
    fn to_core(
        state: &ThreadState<Self::Regs>,
        layout: &Self::FpLayout,
        core: &mut pb::CoreEntry,
    ) -> Result<(), CoreError>;

    /// Replaces the general registers in `core`: those a new task goes on with.
    fn set_regs(core: &mut pb::CoreEntry, reborn: &Self::Regs);

    /// The state of a new task, ready to be set.
    fn from_core(
        core: &pb::CoreEntry,
        layout: &Self::FpLayout,
    ) -> Result<ThreadState<Self::Regs>, CoreError>;

    /// Writes the machine alone: all that is left of a zombie.
    fn set_machine(core: &mut pb::CoreEntry);

    /// The address that is cleared when the thread ends: set_tid_address(2).
    fn clear_tid(core: &pb::CoreEntry) -> Option<u64>;

    /// Sets it, once [`CoreImage::to_core`] has been.
    fn set_clear_tid(core: &mut pb::CoreEntry, address: u64);

    /// The call by which a new thread must set its TLS itself, since nobody else can: number and
    /// argument ([`crate::SetArea::Itself`]).
    fn tls_call(core: &pb::CoreEntry) -> Option<(u32, u64)>;

    /// What this CPU can do, for `cpuinfo.img`; `None` if the format has no entry for such machines.
    fn describe_cpu(
        _identify: &dyn Fn(u32, u32) -> [u32; 4],
    ) -> Result<Option<pb::CpuinfoEntry>, CoreError> {
        Ok(None)
    }

    /// What a task from the CPU `written` could miss `here`, by name. More abilities are no difference,
    /// except where exactness is asked for.
    fn compare_cpu(
        _written: &pb::CpuinfoEntry,
        _here: &pb::CpuinfoEntry,
        _checks: CpuChecks,
    ) -> Result<Vec<String>, CoreError> {
        Ok(Vec::new())
    }
}

/// What of a CPU must match where a task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuChecks {
    /// All of it, exactly.
    pub exact: bool,
    /// The floating point state.
    pub fpu: bool,
    /// The instructions.
    pub instructions: bool,
}
