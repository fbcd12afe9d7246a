//! The end of a restore: what is done with files when tasks have all they had, and closed.

use std::rc::Rc;

use criu_image::id::FileId;
use criu_kind::{Error, Opened, RestoreCx, Result, Within};
use criu_tracee::{Local, Program, Site};

use crate::files::Files;
use crate::terminal_open::Controlling;

impl Files<'_> {
    /// What is done here when tasks have all they had: watches are set, memory is sealed. Nothing can be asked
    /// of the files afterwards: they are closed before the watches could hear of it.
    pub fn last(&mut self) -> Result<()> {
        let here: Vec<(FileId, i32)> = self
            .opened
            .iter()
            .filter_map(|(id, opened)| match opened {
                Opened::Here(fd) => Some((*id, *fd)),
                _ => None,
            })
            .collect();
        let mut programs = Vec::new();
        for (id, fd) in here {
            let saved = &self.all[&id];
            let (kind, entry) = (saved.kind, saved.entry.clone());
            let program = kind.last(self, &entry, fd).within(|| self.subject(id))?;
            if !program.is_empty() {
                programs.push((id, program));
            } else if kind.leaves() {
                self.opened.remove(&id);
                nix::unistd::close(fd).map_err(Error::kernel("close"))?;
            }
        }
        self.passage = None;
        let mut program = Program::new();
        for fd in self.controlling().extra.borrow_mut().drain(..) {
            program.close(fd);
        }
        Local.run(&program)?;
        // CRIU's images may name a watched file so, and no watch shall see the name go.
        self.remove_names()?;
        let mut program = Program::new();
        for fd in std::mem::take(&mut self.shared_fds).into_values() {
            program.close(fd);
        }
        Local.run(&program)?;
        self.close(|id| !programs.iter().any(|(busy, _)| *busy == id));
        for (id, program) in programs {
            Local.run(&program).within(|| self.subject(id))?;
        }
        self.close(|_| true);
        Ok(())
    }

    /// Sessions and their terminals: the number of a descriptor that all processes have until [`Files::place`],
    /// and the group in the foreground. After [`Files::open_all`].
    pub fn controlling_terminals(&mut self) -> Vec<(u32, i32, u32)> {
        let all = self.controlling();
        let sessions = all.sessions.borrow();
        sessions
            .iter()
            .map(|(sid, (fd, pgrp))| (*sid, *fd, *pgrp))
            .collect()
    }

    fn controlling(&mut self) -> Rc<Controlling> {
        let cx: &mut dyn RestoreCx = self;
        let all = cx.cached(|_| Ok(Controlling::default()));
        all.expect("making nothing does not fail")
    }

    fn close(&mut self, which: impl Fn(FileId) -> bool) {
        let mut numbers = Vec::new();
        self.opened.retain(|id, opened| {
            let closes = which(*id);
            if let Opened::Here(fd) | Opened::Given(fd) = opened
                && closes
            {
                numbers.push(*fd);
            }
            !closes
        });
        if self.opened.is_empty() {
            numbers.extend(std::mem::take(&mut self.shared_fds).into_values());
        }
        let mut program = Program::new();
        for (first, last) in runs(numbers) {
            program.close_range(first, last, 0);
        }
        if let Err(error) = Local.run(&program) {
            tracing::error!(%error, "files of the restore could not be closed");
        }
    }
}

/// Numbers as ranges of such as follow each other: first and last.
pub(crate) fn runs(mut numbers: Vec<i32>) -> Vec<(i32, i32)> {
    numbers.sort_unstable();
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    runs.map(|run| (run[0], run[run.len() - 1])).collect()
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        self.close(|_| true);
    }
}
