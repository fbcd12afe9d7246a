//! What there is in an IPC namespace: the tables of `/proc/sysvipc`.
//!
//! They say nearly all, and the same on every machine; the structures of shmctl(2) and its like differ. A table
//! is of the namespace, and its pids are of the pid namespace, of whoever opens it: so a [`Site`] reads it.

use criu_kind::{Error, Result};
use criu_tracee::{Program, Site};

/// Bytes read at a time: the kernel gives little more than a page.
const CHUNK: usize = 4096;
/// Reads in the first batch: most namespaces are empty, or nearly so.
const READS: usize = 4;

/// A line of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    words: Vec<(String, String)>,
}

impl Row {
    fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<T> {
        let word = self.words.iter().find(|(column, _)| column == name);
        let parsed = word.and_then(|(_, word)| word.parse().ok());
        parsed.ok_or_else(|| Error::corrupt("/proc/sysvipc", format!("no column {name}")))
    }

    /// Its key and its id, and who it belongs to.
    fn perm(&self, id: &'static str) -> Result<Perm> {
        let mode = self.words.iter().find(|(column, _)| column == "perms");
        let mode = mode.and_then(|(_, word)| u32::from_str_radix(word, 8).ok());
        Ok(Perm {
            key: self.number("key")?,
            id: self.number(id)?,
            mode: mode.ok_or_else(|| Error::corrupt("/proc/sysvipc", "no permissions"))?,
            uid: self.number("uid")?,
            gid: self.number("gid")?,
            cuid: self.number("cuid")?,
            cgid: self.number("cgid")?,
            ctime: self.number("ctime")?,
        })
    }
}

/// What all three kinds have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Perm {
    /// 0: none.
    pub(crate) key: i32,
    /// What calls name it by.
    pub(crate) id: i32,
    /// Permissions; of a segment also whether it is locked and whether it goes with its last user.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Who made it.
    pub(crate) cuid: u32,
    /// The group of who made it.
    pub(crate) cgid: u32,
    /// When it was made or changed, in seconds.
    pub(crate) ctime: i64,
}

/// A segment of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shm {
    /// Identity and owner.
    pub(crate) perm: Perm,
    /// In bytes.
    pub(crate) size: u64,
    /// Who made it.
    pub(crate) cpid: i32,
    /// Who attached or detached it last.
    pub(crate) lpid: i32,
    /// How many mappings there are.
    pub(crate) nattch: u64,
}

/// A set of semaphores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sem {
    /// Identity and owner.
    pub(crate) perm: Perm,
    /// How many there are.
    pub(crate) nsems: u32,
    /// When one was last operated, in seconds.
    pub(crate) otime: i64,
}

/// A message queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Msg {
    /// Identity and owner.
    pub(crate) perm: Perm,
    /// Bytes in it.
    pub(crate) cbytes: u64,
    /// Messages in it.
    pub(crate) qnum: u64,
    /// Who sent last.
    pub(crate) lspid: i32,
    /// Who received last.
    pub(crate) lrpid: i32,
    /// When.
    pub(crate) stime: i64,
    /// When.
    pub(crate) rtime: i64,
}

/// The three tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// All segments.
    pub(crate) shm: Vec<Shm>,
    /// All sets.
    pub(crate) sem: Vec<Sem>,
    /// All queues.
    pub(crate) msg: Vec<Msg>,
}

impl Tables {
    /// Reads what the namespace of the site has.
    pub(crate) fn read(site: &mut dyn Site) -> Result<Self> {
        let shm = parse(&text(site, "shm")?)?.into_iter().map(|row| {
            Ok(Shm {
                perm: row.perm("shmid")?,
                size: row.number("size")?,
                cpid: row.number("cpid")?,
                lpid: row.number("lpid")?,
                nattch: row.number("nattch")?,
            })
        });
        let sem = parse(&text(site, "sem")?)?.into_iter().map(|row| {
            Ok(Sem {
                perm: row.perm("semid")?,
                nsems: row.number("nsems")?,
                otime: row.number("otime")?,
            })
        });
        let msg = parse(&text(site, "msg")?)?.into_iter().map(|row| {
            Ok(Msg {
                perm: row.perm("msqid")?,
                cbytes: row.number("cbytes")?,
                qnum: row.number("qnum")?,
                lspid: row.number("lspid")?,
                lrpid: row.number("lrpid")?,
                stime: row.number("stime")?,
                rtime: row.number("rtime")?,
            })
        });
        Ok(Self {
            shm: shm.collect::<Result<_>>()?,
            sem: sem.collect::<Result<_>>()?,
            msg: msg.collect::<Result<_>>()?,
        })
    }
}

/// The whole of a file that a site reads, by batches that leave nothing open.
pub(crate) fn text(site: &mut dyn Site, name: &str) -> Result<Vec<u8>> {
    let mut reads = READS;
    loop {
        let mut program = Program::new();
        let path = program.cstr(format!("/proc/sysvipc/{name}"));
        let fd = program.openat(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_CLOEXEC, 0);
        let parts: Vec<_> = (0..reads)
            .map(|_| {
                let room = program.room(CHUNK);
                (program.read(fd, room, CHUNK), room)
            })
            .collect();
        program.close(fd);
        let outcome = site.run(&program)?;
        let mut text = Vec::new();
        for (ret, room) in &parts {
            let length = usize::try_from(outcome.value(*ret)).unwrap_or(0);
            text.extend_from_slice(outcome.bytes(*room).get(..length).unwrap_or_default());
            if length == 0 {
                return Ok(text);
            }
        }
        reads *= 4;
    }
}

fn parse(text: &[u8]) -> Result<Vec<Row>> {
    let text = std::str::from_utf8(text)
        .map_err(|_| Error::corrupt("/proc/sysvipc", "a table that is not text"))?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let row = |line: &str| Row {
        words: names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(line.split_whitespace().map(str::to_owned))
            .collect(),
    };
    Ok(lines.map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_tracee::Local;

    const SHM: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
  56231125          3  1600                    56  4711  4712      6   117   124   117   124 1700000001          0 1700000000                  4096                     0
        -1      65540   644              16777216     1     0      0     0     0     0     0          0          0 1700000002                     0                     0
";

    #[test]
    fn lines_by_the_names_of_their_columns() {
        let rows = parse(SHM.as_bytes()).expect("a table");
        let perm = rows[0].perm("shmid").expect("complete");
        assert_eq!((perm.key, perm.id, perm.mode), (56_231_125, 3, 0o1600));
        assert_eq!((perm.uid, perm.cgid, perm.ctime), (117, 124, 1_700_000_000));
        assert_eq!(rows[0].number::<u64>("nattch").expect("there"), 6);
        assert_eq!(rows[1].perm("shmid").expect("complete").key, -1);
        rows[0].number::<u64>("colour").expect_err("no such column");
    }

    #[test]
    fn this_machine_has_tables() {
        Tables::read(&mut Local).expect("readable");
    }
}
