//! What a task is doing: the letter in stat and status.

/// The state letter: `task_state_array` in `fs/proc/array.c`, proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// `R`: running, or ready to.
    Running,
    /// `S`: waits, and a signal can wake it.
    Sleeping,
    /// `D`: waits, and no signal wakes it.
    DiskSleep,
    /// `T`: stopped by a signal.
    Stopped,
    /// `t`: stopped by its tracer.
    TracingStop,
    /// `X` or `x`: nearly gone.
    Dead,
    /// `Z`: dead, not yet reaped.
    Zombie,
    /// `P`: a parked kernel thread.
    Parked,
    /// `I`: an idle kernel thread.
    Idle,
    /// `K` (wakekill) or `W` (waking): transients of old kernels.
    Waking,
}

impl TaskState {
    /// From the kernel's letter.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::DiskSleep,
            b'T' => Self::Stopped,
            b't' => Self::TracingStop,
            b'X' | b'x' => Self::Dead,
            b'Z' => Self::Zombie,
            b'P' => Self::Parked,
            b'I' => Self::Idle,
            b'K' | b'W' => Self::Waking,
            _ => return None,
        })
    }
}
