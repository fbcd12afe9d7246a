//! Terminals: pty(7), `/dev/tty`, consoles and serial lines.
//!
//! Both ends of a pair come back under the same index, with what waits in them. A terminal whose other end is outside of
//! the tree is that of the caller (`--shell-job`) or given (`--inherit-fd fd[N]:tty[rdev:dev]`).
//! Whose controlling terminal it is, and which group is in the foreground, is set when there are sessions and groups: see
//! `Files::controlling_terminals`.
//! Not preserved: speeds other than the standard ones, what waits in a terminal of which one end is outside.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;

use criu_image::id::FileId;
use criu_image::{desc, pb};
use criu_kind::{
    DumpCx, Error, FileEntry, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Slot,
};
use criu_proc::{Dev, ProcDir};
use criu_tracee::{Local, Program, Ret, Site};
use nix::unistd::Pid;

use crate::kinds::regular::copy_given;
use crate::terminal::{self, TERMIOS, number};
use crate::terminal_data::Pair;
use crate::terminal_open::{Saved, control, open_pair, path_of, peer};

const O_NOCTTY: u32 = libc::O_NOCTTY.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// Ids of terminals that are no pairs, halved: CRIU has them so.
const CONSOLE: u32 = 1002;
const VT: u32 = 1004;
const CTTY: u32 = 1006;
const SERIAL: u32 = 1010;
const EXTERNAL: u32 = 1012;

/// A terminal.
#[derive(Debug)]
pub struct Tty;

/// What it is, by its device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Master,
    Slave,
    Current,
    Console,
    Virtual,
    Serial,
}

impl Line {
    fn of(rdev: u64) -> Option<Self> {
        let dev = Dev::from_st_dev(rdev);
        Some(match (dev.major, dev.minor) {
            (5, 0) => Self::Current,
            (5, 1) => Self::Console,
            (5, 2) | (128..=135, _) => Self::Master,
            (136..=143, _) => Self::Slave,
            (4, 0..=63) => Self::Virtual,
            (4 | 188 | 204, _) => Self::Serial,
            _ => return None,
        })
    }

    fn kind(self) -> pb::TtyType {
        match self {
            Self::Master | Self::Slave => pb::TtyType::Pty,
            Self::Current => pb::TtyType::Ctty,
            Self::Console => pb::TtyType::Console,
            Self::Virtual => pb::TtyType::Vt,
            Self::Serial => pb::TtyType::Serial,
        }
    }
}

impl FileKind for Tty {
    type Entry = pb::TtyFileEntry;
    const NAME: &'static str = "tty";
    const SINCE: Kernel = Kernel::new(4, 13, 0);
    const RELATES: bool = true;

    fn claims(&self, file: &OpenFile) -> bool {
        file.inode.format() == libc::S_IFCHR
            && file.flags() & O_PATH == 0
            && Line::of(file.inode.rdev).is_some()
    }

    fn dump(&self, cx: &mut dyn DumpCx, file: &OpenFile) -> Result<Self::Entry> {
        let line = Line::of(file.inode.rdev).unwrap_or(Line::Serial);
        let key = key(file);
        let fd = file.fd.as_raw_fd();
        let external = cx.is_external(&key);
        let index = match line {
            _ if external => EXTERNAL,
            Line::Master => number(fd, libc::TIOCGPTN)?.unwrap_or(0),
            Line::Slave => slave_index(file),
            Line::Current => CTTY,
            Line::Console => CONSOLE,
            Line::Virtual => VT,
            Line::Serial => SERIAL,
        };
        let is_master = line == Line::Master;
        let info_id = (index << 1) + u32::from(is_master);
        one_instance(cx, file, line)?;
        let regf_id = match external {
            true => None,
            false => Some(cx.part(&mut |_, id| Ok(path(file, id).into_file()))?.get()),
        };
        if cx.first(Self::NAME, info_id.into()) {
            let mut info = describe(cx, file, line, info_id)?;
            if external {
                info.r#type = pb::TtyType::ExtTty.into();
                info.pty = None;
            }
            cx.append(desc::TTY_INFO, (), &info, &[])?;
        }
        Ok(pb::TtyFileEntry {
            id: file.number(),
            tty_info_id: info_id,
            flags: file.flags(),
            fown: file.owner,
            regf_id,
        })
    }

    fn relations(
        &self,
        cx: &mut dyn DumpCx,
        file: &OpenFile,
        entry: &mut Self::Entry,
    ) -> Result<()> {
        let line = Line::of(file.inode.rdev);
        let fd = file.fd.as_raw_fd();
        let hung = terminal::get(fd, libc::TCGETS, TERMIOS.next_multiple_of(4))?.is_none();
        if cx.is_external(&key(file)) || hung {
            return Ok(());
        }
        let other = find_other(cx, file, line)?;
        match (line, other) {
            (Some(Line::Slave), None) if !cx.is_external("tty[*]") => Err(Error::unsupported(
                "a terminal whose other end is outside of the tree",
                format!(
                    "use --shell-job to give it that of the restoring shell; or leave it outside with --external {}, \
                     and give another one with --inherit-fd fd[N]:{0}",
                    key(file)
                ),
            )),
            (Some(Line::Master), Some(_)) if cx.first("tty data", entry.tty_info_id.into()) => {
                keep_data(cx, file, entry.tty_info_id)
            }
            _ => Ok(()),
        }
    }

    /// All of them: ends of pairs, and who is whose controlling terminal.
    fn twins(&self, _: &Self::Entry) -> Option<u64> {
        Some(0)
    }

    fn parts(&self, entry: &Self::Entry) -> Vec<FileId> {
        entry.regf_id.map(FileId::new).into_iter().collect()
    }

    fn open(&self, cx: &mut dyn RestoreCx, entry: &Self::Entry) -> Result<Opened> {
        let mut all = self.open_twins(cx, &[entry])?;
        Ok(all.remove(0))
    }

    fn open_twins(&self, cx: &mut dyn RestoreCx, entries: &[&Self::Entry]) -> Result<Vec<Opened>> {
        let saved = cx.cached(Saved::load)?;
        let mut opened = vec![Opened::There; entries.len()];
        let mut pairs: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let info = saved.info(entry.tty_info_id)?;
            let key = format!("tty[{:x}:{:x}]", info.rdev, info.dev.unwrap_or(0));
            if let Some(given) = cx.inherited(key.as_bytes()) {
                opened[index] = copy_given(cx, given)?;
                if let Opened::Given(fd) = opened[index] {
                    control(cx, info, fd)?;
                }
                continue;
            }
            match pb::TtyType::try_from(info.r#type) {
                Ok(pb::TtyType::Pty) => {
                    pairs.entry(entry.tty_info_id >> 1).or_default().push(index);
                }
                Ok(pb::TtyType::Ctty) => {}
                Ok(pb::TtyType::ExtTty) => {
                    return Err(Error::unsupported(
                        format!("terminal {key} was left outside"),
                        format!("give one with --inherit-fd fd[N]:{key}"),
                    ));
                }
                _ => {
                    let fd = cx.open_path(path_of(entry)?, Some(entry.flags | O_NOCTTY))?;
                    let mut program = Program::new();
                    terminal::set(&mut program, fd, info);
                    cx.here().run(&program)?;
                    control(cx, info, fd)?;
                    opened[index] = Opened::Here(fd);
                }
            }
        }
        for ends in pairs.into_values() {
            let ends: Vec<(usize, &Self::Entry)> = ends
                .into_iter()
                .map(|index| (index, entries[index]))
                .collect();
            for (index, fd) in open_pair(cx, &saved, &ends)? {
                opened[index] = Opened::Here(fd);
            }
        }
        Ok(opened)
    }

    /// `/dev/tty` is whatever the process has.
    fn open_there(&self, entry: &Self::Entry, program: &mut Program) -> Result<Ret> {
        let path = program.cstr("/dev/tty");
        Ok(program.openat(libc::AT_FDCWD, path, entry.flags | O_NOCTTY, 0))
    }
}

/// What the user calls it: both numbers as stat(2) gives them.
fn key(file: &OpenFile) -> String {
    format!("tty[{:x}:{:x}]", file.inode.rdev, file.inode.dev)
}

/// Its path, which goes and comes with the pair.
fn path(file: &OpenFile, id: FileId) -> pb::RegFileEntry {
    let name = file.link.strip_suffix(b" (deleted)").unwrap_or(&file.link);
    pb::RegFileEntry {
        id: id.get(),
        flags: file.flags(),
        fown: file.owner,
        name: name.to_vec(),
        mode: Some(file.inode.mode),
        ..pb::RegFileEntry::default()
    }
}

fn slave_index(file: &OpenFile) -> u32 {
    Dev::from_st_dev(file.inode.rdev).minor
}

/// Refuses pairs of more than one instance of devpts: their numbers are the same.
fn one_instance(cx: &mut dyn DumpCx, file: &OpenFile, line: Line) -> Result<()> {
    if line != Line::Slave {
        return Ok(());
    }
    let known = cx.cached(|| Ok(RefCell::new(Vec::<u64>::new())))?;
    let mut known = known.borrow_mut();
    let place = known.iter().position(|dev| *dev == file.inode.dev);
    let place = place.unwrap_or_else(|| {
        known.push(file.inode.dev);
        known.len() - 1
    });
    if place > 0 {
        return Err(Error::unsupported(
            "terminals of more than one instance of devpts",
            "let the task close those of all but one",
        ));
    }
    Ok(())
}

fn describe(cx: &mut dyn DumpCx, file: &OpenFile, line: Line, id: u32) -> Result<pb::TtyInfoEntry> {
    let fd = file.fd.as_raw_fd();
    let is_pair = matches!(line, Line::Master | Line::Slave);
    let index = match line {
        Line::Master => number(fd, libc::TIOCGPTN)?.unwrap_or(0),
        _ => slave_index(file),
    };
    let (sid, pgrp) = session(cx, file, line, index)?;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(0);
    let size = TERMIOS.next_multiple_of(4);
    let settings = |request| {
        Ok::<_, Error>(terminal::get(fd, request, size)?.map(|it| terminal::termios(&it)))
    };
    let termios = settings(libc::TCGETS)?;
    let hung = termios.is_none();
    Ok(pb::TtyInfoEntry {
        id,
        r#type: line.kind().into(),
        locked: is_pair && number(fd, libc::TIOCGPTLCK)?.unwrap_or(0) != 0,
        exclusive: number(fd, libc::TIOCGEXCL)?.unwrap_or(0) != 0,
        packet_mode: line == Line::Master && number(fd, libc::TIOCGPKT)?.unwrap_or(0) != 0,
        sid,
        pgrp,
        rdev: narrow(file.inode.rdev),
        termios,
        termios_locked: settings(libc::TIOCGLCKTRMIOS)?.filter(|_| !hung),
        winsize: terminal::get(fd, libc::TIOCGWINSZ, 8)?
            .filter(|_| !hung)
            .map(|size| terminal::winsize(&size)),
        pty: is_pair.then_some(pb::TtyPtyEntry { index }),
        dev: Some(narrow(file.inode.dev)),
        uid: Some(file.inode.uid),
        gid: Some(file.inode.gid),
    })
}

/// The session whose controlling terminal it is, and the group in its foreground: found at the processes of the
/// session, or told by the master.
fn session(cx: &dyn DumpCx, file: &OpenFile, line: Line, index: u32) -> Result<(u32, u32)> {
    let wanted = match line {
        Line::Master => Dev {
            major: 136,
            minor: index,
        },
        Line::Current => return Ok((0, 0)),
        _ => Dev::from_st_dev(file.inode.rdev),
    };
    for pid in cx.tree() {
        let Ok(stat) = ProcDir::open(*pid).and_then(|process| process.stat()) else {
            continue;
        };
        if stat.tty() == Some(wanted) && cx.in_tree(stat.session) {
            let id = |pid: Pid| cx.vpid(pid).as_raw().unsigned_abs();
            let pgrp = if stat.tpgid.as_raw() > 0 {
                id(stat.tpgid)
            } else {
                0
            };
            return Ok((id(stat.session), pgrp));
        }
    }
    Ok((0, 0))
}

/// Whether the other end of a pair is in the tree too.
fn find_other(cx: &mut dyn DumpCx, file: &OpenFile, line: Option<Line>) -> Result<Option<()>> {
    let ends = cx.cached(|| Ok(RefCell::new(None::<HashMap<(bool, u32), Slot>>)))?;
    if ends.borrow().is_none() {
        let mut found = HashMap::new();
        for pid in cx.tree().to_vec() {
            let process = ProcDir::open(pid)?;
            let fds = match process.fds() {
                // The dead have none.
                Err(criu_proc::Error::Kernel {
                    errno: nix::errno::Errno::ENOENT,
                    ..
                }) => continue,
                fds => fds?,
            };
            for fd in fds {
                let info = process.fdinfo(fd)?;
                let link = process.readlink(&format!("fd/{fd}"))?;
                let link = link.to_string_lossy().into_owned();
                let slave = link
                    .rsplit_once("/pts/")
                    .and_then(|(_, index)| index.parse::<u32>().ok());
                // Only masters have one.
                let master = info.int::<u32>("tty-index").ok();
                for (is_master, index) in [(false, slave), (true, master)] {
                    if let Some(index) = index {
                        found.insert((is_master, index), Slot { pid, fd });
                    }
                }
            }
        }
        *ends.borrow_mut() = Some(found);
    }
    let ends = ends.borrow();
    let key = match line {
        Some(Line::Master) => {
            let index = number(file.fd.as_raw_fd(), libc::TIOCGPTN)?.unwrap_or(0);
            (false, index)
        }
        Some(Line::Slave) => (true, slave_index(file)),
        _ => return Ok(None),
    };
    Ok(ends.as_ref().and_then(|ends| ends.get(&key)).map(|_| ()))
}

/// Writes what waits in both ends; both are in the tree.
fn keep_data(cx: &mut dyn DumpCx, file: &OpenFile, id: u32) -> Result<()> {
    let master = file.fd.as_raw_fd();
    let settings = terminal::get(master, libc::TCGETS, TERMIOS.next_multiple_of(4))?;
    let Some(settings) = settings.map(|settings| terminal::termios(&settings)) else {
        return Ok(());
    };
    let slave = peer(master)?;
    let pair = Pair {
        master,
        slave,
        termios: &settings,
        packets: number(master, libc::TIOCGPKT)?.unwrap_or(0) != 0,
    };
    let borrowed = pair.borrow();
    let mut program = Program::new();
    program.close(slave);
    Local.run(&program)?;
    let (out, lines) = borrowed?;
    for (tty_id, data) in [(id, out), (id & !1, lines)] {
        if !data.is_empty() {
            cx.append(desc::TTY_DATA, (), &pb::TtyDataEntry { tty_id, data }, &[])?;
        }
    }
    Ok(())
}
