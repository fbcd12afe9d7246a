//! The list of aspects, and what is done with all of them.

use criu_kind::{Answer, Aspect, Draft, Error, Result, Saved, Subject, ThreadView, Within};
use criu_proc::ProcDir;
use criu_tracee::{Outcome, Program};

/// All aspects, in the order in which a new thread is dressed in them.
pub const ASPECTS: &[&dyn Aspect] = &[
    // Nobody depends on these, and they need no privilege.
    &crate::comm::Comm,
    &crate::personality::Personality,
    &crate::clear_tid::ClearTid,
    &crate::tls::Tls,
    &crate::robust_list::RobustList,
    &crate::altstack::Altstack,
    &crate::thp::Thp,
    &crate::mce_kill::MceKill,
    &crate::speculation::Speculation,
    &crate::coredump_filter::CoredumpFilter,
    &crate::wait::Wait,
    &crate::child_subreaper::ChildSubreaper,
    &crate::membarrier::Membarrier,
    // Memory is in place by now: registering writes to the area.
    &crate::rseq::Rseq,
    &crate::sigaction::Sigaction,
    // These need privilege: before creds.
    &crate::sched::Sched,
    &crate::affinity::Affinity,
    &crate::ioprio::Ioprio,
    // After sched: real-time threads have no slack to set.
    &crate::timerslack::Timerslack,
    &crate::loginuid::Loginuid,
    &crate::io_flusher::IoFlusher,
    &crate::memory_merge::MemoryMerge,
    &crate::oom_score::OomScore,
    // Timers take a slot of RLIMIT_SIGPENDING each: before rlimit.
    &crate::posix_timer::PosixTimers,
    // Queued signals take one each, too. After timers, so that those cannot find the queue full.
    &crate::pending::Pending,
    // Raising a hard limit needs privilege: before creds.
    &crate::rlimit::Rlimits,
    // A thread that will neither have CAP_SYS_ADMIN nor no_new_privs can get its filters now only.
    // They are suspended until the tracer lets go.
    &crate::seccomp::Seccomp { before_creds: true },
    // Takes privilege away.
    &crate::creds::Creds,
    // Changing credentials clears it: after creds.
    &crate::pdeathsig::Pdeathsig,
    // Changing credentials changes it: after creds, and (the leader being last) after those of every
    // thread.
    &crate::dumpable::Dumpable,
    &crate::no_new_privs::NoNewPrivs,
    // Nothing changes mappings any more but the removal of our own.
    &crate::mdwe::Mdwe,
    // As late as may be: they tick.
    &crate::itimer::Itimers,
    // From here on the thread may not be able to make calls at all, unless filters are suspended.
    &crate::seccomp::Seccomp {
        before_creds: false,
    },
];

/// Adds to `program` what only the thread itself can tell of itself. Run it there, then give the
/// answers to [`answer`].
pub fn describe(
    view: &ThreadView<'_>,
    program: &mut Program,
) -> Result<Vec<(&'static str, Answer)>> {
    let mut answers = Vec::with_capacity(ASPECTS.len());
    for aspect in ASPECTS {
        let name = aspect.name();
        let answer = aspect.ask(view, program).within(|| Subject::Aspect(name))?;
        answers.push((name, answer));
    }
    Ok(answers)
}

/// Completes the draft of a thread with what it told. All refusals are collected.
pub fn answer(
    answers: Vec<(&'static str, Answer)>,
    view: &ThreadView<'_>,
    outcome: &Outcome,
    draft: &mut Draft,
) -> Result<()> {
    let mut refusals = Vec::new();
    for (name, answer) in answers {
        match answer(view, outcome, draft).within(|| Subject::Aspect(name)) {
            Err(error) if matches!(error.cause(), Error::Unsupported { .. }) => {
                refusals.push(error);
            }
            done => done?,
        }
    }
    Error::all(refusals)
}

/// Which aspect added which calls to a program.
#[derive(Clone, Debug, Default)]
pub struct Dressed {
    ends: Vec<(usize, &'static str)>,
}

impl Dressed {
    /// Says of which aspect a failure of the program speaks.
    pub fn blame(&self, error: criu_tracee::Error) -> Error {
        let criu_tracee::Error::Call(call) = &error else {
            return error.into();
        };
        let name = self
            .ends
            .iter()
            .find(|(end, _)| call.index < *end)
            .map(|(_, name)| *name);
        let text = call.text.clone();
        let named: Result<()> = Err(error).within(|| Subject::Object(text));
        let named = match name {
            Some(name) => named.within(|| Subject::Aspect(name)),
            None => named,
        };
        named.expect_err("it is an error from the start")
    }
}

/// Adds to `program` the calls that make a new thread what it was. They run in the thread itself,
/// under its own room for programs: leaders last.
pub fn dress(saved: &Saved<'_>, program: &mut Program) -> Result<Dressed> {
    let mut dressed = Dressed::default();
    for aspect in ASPECTS {
        let name = aspect.name();
        aspect
            .dress(saved, program)
            .within(|| Subject::Aspect(name))?;
        dressed.ends.push((program.len(), name));
    }
    Ok(dressed)
}

/// Gives a new thread what can only be given from outside, after its last program has run: through the
/// directory of its process.
pub fn push(saved: &Saved<'_>, process: &ProcDir) -> Result<()> {
    for aspect in ASPECTS {
        let name = aspect.name();
        aspect
            .push(saved, process)
            .within(|| Subject::Aspect(name))?;
    }
    Ok(())
}
