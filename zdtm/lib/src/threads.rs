//! Threads that each build state, wait, and check it.

use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use crate::Result;

/// A number of threads, all past their set-up.
pub struct Team<T> {
    members: Vec<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Team<T> {
    /// Starts `count` threads that run `body(index, set_up)`; each calls `set_up()` once. Returns when all have.
    pub fn start(
        count: usize,
        body: impl Fn(usize, &dyn Fn()) -> Result<T> + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        let barrier = Arc::new(Barrier::new(count + 1));
        let mut members = Vec::with_capacity(count);
        for index in 0..count {
            let (barrier, body) = (Arc::clone(&barrier), body.clone());
            let thread = std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(move || {
                    let called = std::cell::Cell::new(false);
                    let set_up = || {
                        called.set(true);
                        barrier.wait();
                    };
                    let result = body(index, &set_up);
                    if !called.get() {
                        // It failed early; the others must not wait for it for ever.
                        barrier.wait();
                    }
                    result
                })?;
            members.push(thread);
        }
        barrier.wait();
        Ok(Self { members })
    }

    /// Joins all; the first error wins.
    pub fn join(self) -> Result<Vec<T>> {
        self.members
            .into_iter()
            .enumerate()
            .map(|(index, thread)| match thread.join() {
                Ok(result) => result.map_err(|error| error.context(format!("thread {index}"))),
                Err(_) => crate::bail!("thread {index} panicked"),
            })
            .collect()
    }
}
