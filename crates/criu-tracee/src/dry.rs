//! A site on paper.

use crate::error::Result;
use crate::program::Program;
use crate::site::{Outcome, Site};

/// Runs nothing: keeps a listing of what it was given and answers from a script.
///
/// ```
/// use criu_tracee::{Dry, Program, Site};
/// let mut program = Program::new();
/// let fd = program.eventfd2(0, 0);
/// program.close(fd);
/// let mut dry = Dry::returning([7, 0]);
/// assert_eq!(dry.run(&program)?.fd(fd), 7);
/// assert_eq!(dry.listing(), "$0 = eventfd2(0, 0)\n$1 = close($0)\n");
/// # Ok::<(), criu_tracee::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Dry {
    listing: String,
    script: std::collections::VecDeque<i64>,
}

impl Dry {
    /// Answers every call with 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers the first calls with these results, later ones with 0.
    pub fn returning(script: impl IntoIterator<Item = i64>) -> Self {
        Self {
            listing: String::new(),
            script: script.into_iter().collect(),
        }
    }

    /// All programs so far, one call a line.
    pub fn listing(&self) -> &str {
        &self.listing
    }
}

impl Site for Dry {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        self.listing.push_str(&program.to_string());
        let mut outcome = Outcome::new(program);
        for _ in &program.calls {
            outcome.push(self.script.pop_front().unwrap_or(0));
        }
        for (index, data) in program.data.iter().enumerate().filter(|(_, data)| data.out) {
            outcome.store(u32::try_from(index).expect("few blobs"), &data.bytes);
        }
        Ok(outcome)
    }
}
