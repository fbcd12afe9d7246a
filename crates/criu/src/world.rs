//! The tasks on their way back: born, filled, dressed, and let go together.

use criu_image::Store;
use criu_kind::{Error, Result, Within};
use criu_mm::{Ground, Pages};
use criu_proc::ProcDir;
use criu_task::{Plan, PlanNode, Role, Step, birth};
use criu_tracee::{Job, Nursery, Program, Site, Tracee, run_all, spawn_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Body, Model, Task};

const CLONE_PARENT: u64 = 0x8000;
const STOPPED: u32 = 6;

/// The held tasks. Dropping it ends them all.
pub struct World<'m> {
    model: &'m mut Model,
    /// One a task of the images that lives, parents first.
    alive: Vec<(usize, Tracee)>,
    nursery: Nursery,
}
