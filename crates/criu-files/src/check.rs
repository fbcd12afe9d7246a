//! Whether the file system still has what the tasks had open, before anything is made.
//!
//! All that does not fit is told at once.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use criu_image::id::FileId;
use criu_image::pb;
use criu_kind::{Error, Inode, RestoreCx, Result, Within};
use criu_tracee::stat::lstat;
use nix::errno::Errno;

use crate::build_id;
use crate::files::{Files, Remap};
use crate::open::from_root;
use crate::options::{FilePolicy, Validation};

const MODE_BITS: u32 = 0o7777;

impl Files<'_> {
    /// Lets what the user expects of paths take the place of what the images say of them.
    pub(crate) fn apply_policies(&mut self) {
        for (id, path) in &mut self.paths {
            match (self.options.policies)(&path.name) {
                FilePolicy::Strict => {}
                FilePolicy::Ignore => forget(path),
                FilePolicy::Append => drop(self.growing.insert(*id, false)),
                FilePolicy::Truncate => drop(self.growing.insert(*id, true)),
                FilePolicy::Replace(other) => {
                    forget(path);
                    path.name = other;
                }
            }
            if let Some(saved) = self.all.get_mut(id)
                && saved.entry.reg.is_some()
            {
                Rc::make_mut(&mut saved.entry).reg = Some(path.clone().into());
            }
        }
    }

    /// Cuts files that have grown and may not. What was checked stays true: only the end goes.
    pub(crate) fn cut(&self) -> Result<()> {
        for (id, _) in self.growing.iter().filter(|(_, cut)| **cut) {
            let Some(entry) = self.paths.get(id) else {
                continue;
            };
            let Some(size) = entry.size else { continue };
            let path = from_root(self, &entry.name);
            let file = File::options().write(true).open(&path);
            let cut = file.and_then(|file| match file.metadata()?.len() > size {
                true => file.set_len(size),
                false => Ok(()),
            });
            cut.map_err(Error::io("ftruncate"))
                .within(|| self.subject(*id))?;
        }
        Ok(())
    }

    /// Compares every path with what it was at dump: that it is there, its type and permissions, its size, its
    /// build-id. Changes nothing.
    pub fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        // Those of terminals come to be with them.
        let terminals: BTreeSet<FileId> = self
            .all
            .values()
            .filter_map(|saved| saved.entry.tty.as_ref()?.regf_id.map(FileId::new))
            .collect();
        let paths = self.paths.iter().filter(|(id, _)| !terminals.contains(id));
        // One that was opened thousands of times is looked at once.
        let mut stats = HashMap::new();
        for (id, entry) in paths {
            if let Err(error) = self.check_path(*id, entry, &mut stats) {
                wrong.push(Error::Within {
                    subject: self.subject(*id),
                    source: Box::new(error),
                });
            }
        }
        Error::all(wrong)
    }

    fn check_path<'e>(
        &'e self,
        id: FileId,
        entry: &'e pb::RegFileEntry,
        stats: &mut HashMap<&'e [u8], Result<Inode, Errno>>,
    ) -> Result<()> {
        let elsewhere = matches!(
            self.remaps.get(&id),
            Some(Remap::Ghost(_) | Remap::Linked(_))
        );
        let given = self.inherited(&entry.name).is_some();
        if elsewhere || given || entry.ext() || self.is_of_task(&entry.name) {
            return Ok(());
        }
        let path = from_root(self, &entry.name);
        let stat = stats.entry(&entry.name);
        let stat = stat.or_insert_with(|| lstat(&path).map(|stat| Inode::from(&stat)));
        let stat = match *stat {
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(differs("it is not there any more")),
            Err(errno) => {
                return Err(Error::Kernel {
                    call: "lstat",
                    errno,
                });
            }
        };
        if let Some(mode) = entry.mode {
            let bits = if self.options.skip_permissions {
                libc::S_IFMT
            } else {
                libc::S_IFMT | MODE_BITS
            };
            if mode & bits != stat.mode & bits {
                return Err(differs(format!(
                    "its mode was {:o} and is {:o}",
                    mode, stat.mode
                )));
            }
        }
        if let Some(size) = entry.size
            && stat.format() == libc::S_IFREG
            && size != stat.size
            && !(self.growing.contains_key(&id) && size < stat.size)
        {
            return Err(differs(format!("its size was {size} and is {}", stat.size)));
        }
        if self.options.validation == Validation::BuildId && !entry.build_id.is_empty() {
            let file = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path);
            let now = build_id::read(&file.map_err(Error::io("openat"))?).unwrap_or_default();
            if now != entry.build_id {
                return Err(differs("it was built anew: its build-id differs"));
            }
        }
        Ok(())
    }
}

/// Forgets what a file looked like.
fn forget(path: &mut pb::RegFileEntry) {
    (path.size, path.mode) = (None, None);
    path.build_id.clear();
}

fn differs(fact: impl Into<String>) -> Error {
    Error::unsupported(
        fact,
        "put back the file as it was at dump, or say with --file-policy what may have happened to it",
    )
}
