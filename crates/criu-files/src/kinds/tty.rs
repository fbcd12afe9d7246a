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
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{
    DumpCx, Error, FileEntry, FileKind, Kernel, OpenFile, Opened, RestoreCx, Result, Slot,
};
use criu_proc::{Dev, ProcDir};
use criu_tracee::{Local, Program, Ret, Site};
use nix::unistd::Pid;

use crate::kinds::regular::copy_given;
use crate::terminal::{self, TERMIOS, number, request};
use crate::terminal_data::Pair;

const O_RDWR: u32 = libc::O_RDWR.cast_unsigned();
const O_NOCTTY: u32 = libc::O_NOCTTY.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();
const O_PATH: u32 = libc::O_PATH.cast_unsigned();

/// Ids of terminals that are no pairs, halved: CRIU has them so.
const CONSOLE: u32 = 1002;
const VT: u32 = 1004;
const CTTY: u32 = 1006;
const SERIAL: u32 = 1010;
const EXTERNAL: u32 = 1012;
/// Pairs of another instance of devpts, which CRIU does not tell apart.
const INSTANCE: u32 = 1 << 17;

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
        let info_id = (index << 1) + u32::from(is_master) + instance(cx, file, line)?;
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
            let ends: Vec<(usize, &Self::Entry)> =
                ends.into_iter().map(|index| (index, entries[index])).collect();
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

fn path_of(entry: &pb::TtyFileEntry) -> Result<FileId> {
    let path = entry.regf_id.map(FileId::new);
    path.ok_or_else(|| Error::corrupt("files.img", format!("terminal {} has no path", entry.id)))
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

/// What tells pairs of one instance of devpts from those of another: 0 for the first that is met.
fn instance(cx: &mut dyn DumpCx, file: &OpenFile, line: Line) -> Result<u32> {
    if line != Line::Slave {
        return Ok(0);
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
    let _later = INSTANCE;
    Ok(0)
}

fn describe(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    line: Line,
    id: u32,
) -> Result<pb::TtyInfoEntry> {
    let fd = file.fd.as_raw_fd();
    let is_pair = matches!(line, Line::Master | Line::Slave);
    let index = match line {
        Line::Master => number(fd, libc::TIOCGPTN)?.unwrap_or(0),
        _ => slave_index(file),
    };
    let (sid, pgrp) = session(cx, file, line, index)?;
    let narrow = |value: u64| u32::try_from(value).unwrap_or(0);
    let size = TERMIOS.next_multiple_of(4);
    let settings = |request| Ok::<_, Error>(terminal::get(fd, request, size)?.map(|it| terminal::termios(&it)));
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
            let pgrp = if stat.tpgid.as_raw() > 0 { id(stat.tpgid) } else { 0 };
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
            let Ok(process) = ProcDir::open(pid) else {
                continue;
            };
            for fd in process.fds().unwrap_or_default() {
                let Ok(info) = process.fdinfo(fd) else { continue };
                let Ok(link) = process.readlink(&format!("fd/{fd}")) else {
                    continue;
                };
                let link = link.to_string_lossy().into_owned();
                let slave = link
                    .rsplit_once("/pts/")
                    .and_then(|(_, index)| index.parse::<u32>().ok());
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

/// The slave of a master, opened here.
fn peer(master: i32) -> Result<i32> {
    let mut program = Program::new();
    let flags = O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK;
    let slave = program.ioctl(master, request(libc::TIOCGPTPEER), flags);
    Ok(Local.run(&program)?.fd(slave))
}

/// All images of terminals.
#[derive(Debug, Default)]
struct Saved {
    infos: HashMap<u32, pb::TtyInfoEntry>,
    data: HashMap<u32, Vec<u8>>,
}

impl Saved {
    fn load(store: &dyn Store) -> Result<Self> {
        let infos = store.entries::<pb::TtyInfoEntry>(desc::TTY_INFO, ())?;
        let data = store.entries::<pb::TtyDataEntry>(desc::TTY_DATA, ())?;
        let infos = infos.unwrap_or_default().into_iter();
        let data = data.unwrap_or_default().into_iter();
        Ok(Self {
            infos: infos.map(|info| (info.message.id, info.message)).collect(),
            data: data.map(|data| (data.message.tty_id, data.message.data)).collect(),
        })
    }

    fn info(&self, id: u32) -> Result<&pb::TtyInfoEntry> {
        let info = self.infos.get(&id);
        info.ok_or_else(|| Error::corrupt("tty-info.img", format!("terminal {id} is not there")))
    }
}

/// Opens all ends of a pair.
fn open_pair(
    cx: &mut dyn RestoreCx,
    saved: &Saved,
    ends: &[(usize, &pb::TtyFileEntry)],
) -> Result<Vec<(usize, i32)>> {
    let (masters, slaves): (Vec<_>, Vec<_>) =
        ends.iter().partition(|(_, entry)| entry.tty_info_id & 1 == 1);
    let any = ends.first().ok_or_else(|| Error::corrupt("files.img", "no terminal"))?;
    let info = saved.info(masters.first().unwrap_or(any).1.tty_info_id)?;
    let index = info.pty.map_or(0, |pty| pty.index);
    let hung = info.termios.is_none();
    if masters.is_empty() && !hung {
        return inherit(cx, info, &slaves);
    }
    let mut opened = Vec::new();
    let master = match masters.first() {
        Some((_, entry)) => {
            let path = path_of(entry)?;
            open_master(cx, index, &mut |cx| cx.open_path(path, Some(entry.flags | O_NOCTTY)))?
        }
        None => open_master(cx, index, &mut |cx| {
            let mut program = Program::new();
            let path = program.cstr("/dev/ptmx");
            let fd = program.openat(libc::AT_FDCWD, path, O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
            Ok(cx.here().run(&program)?.fd(fd))
        })?,
    };
    lock(cx, master, 0)?;
    for (position, (place, _)) in masters.iter().enumerate() {
        let fd = match position {
            0 => master,
            _ => {
                let mut program = Program::new();
                let copy = program.fcntl(master, libc::F_DUPFD_CLOEXEC, 0);
                cx.here().run(&program)?.fd(copy)
            }
        };
        opened.push((*place, fd));
    }
    for (place, entry) in &slaves {
        let fd = cx.open_path(path_of(entry)?, Some(entry.flags | O_NOCTTY))?;
        opened.push((*place, fd));
    }
    let slave_info = slaves.first().map(|(_, entry)| saved.info(entry.tty_info_id));
    let slave_info = slave_info.transpose()?;
    if hung {
        let mut program = Program::new();
        program.close(master);
        cx.here().run(&program)?;
        return Ok(opened);
    }
    // Without a slave nobody has opened one yet; then there is nothing to set but at the master.
    let first_slave = slaves.first().and_then(|(place, _)| {
        opened.iter().find(|(known, _)| known == place).map(|(_, fd)| *fd)
    });
    let mut program = Program::new();
    terminal::set(&mut program, master, info);
    if let (Some(slave), Some(info)) = (first_slave, slave_info) {
        if let (Some(uid), Some(gid)) = (info.uid, info.gid) {
            program.fchown(slave, uid, gid);
        }
        if info.exclusive {
            program.ioctl(slave, request(libc::TIOCEXCL), 0);
        }
    }
    cx.here().run(&program)?;
    let out = saved.data.get(&info.id).map_or(&[][..], Vec::as_slice);
    let lines = saved.data.get(&(info.id & !1)).map_or(&[][..], Vec::as_slice);
    if let (Some(slave), Some(termios)) = (first_slave, &info.termios)
        && !(out.is_empty() && lines.is_empty())
    {
        let pair = Pair {
            master,
            slave,
            termios,
            packets: false,
        };
        pair.give(out, lines)?;
    }
    let mut program = Program::new();
    if info.packet_mode {
        let on = program.bytes(1u32.to_ne_bytes());
        program.ioctl(master, request(libc::TIOCPKT), on);
    }
    if info.exclusive {
        program.ioctl(master, request(libc::TIOCEXCL), 0);
    }
    cx.here().run(&program)?;
    let controlled = [Some(info), slave_info].into_iter().flatten();
    if let Some(controlled) = controlled.into_iter().find(|info| info.sid != 0) {
        let slave = match first_slave {
            Some(slave) => slave,
            None => {
                let slave = peer(master)?;
                cx.cached(|_| Ok(Controlling::default()))?
                    .extra
                    .borrow_mut()
                    .push(slave);
                slave
            }
        };
        control(cx, controlled, slave)?;
    }
    if info.locked {
        lock(cx, master, 1)?;
    }
    Ok(opened)
}

/// The caller's terminal takes the place of one whose other end was outside.
fn inherit(
    cx: &mut dyn RestoreCx,
    info: &pb::TtyInfoEntry,
    slaves: &[(usize, &pb::TtyFileEntry)],
) -> Result<Vec<(usize, i32)>> {
    use std::io::IsTerminal;
    if !cx.is_external("tty[*]") || !std::io::stdin().is_terminal() {
        let key = format!("tty[{:x}:{:x}]", info.rdev, info.dev.unwrap_or(0));
        return Err(Error::unsupported(
            "the other end of a terminal was outside, and there is no terminal here to take its place",
            format!("restore from a terminal with --shell-job, or give one with --inherit-fd fd[N]:{key}"),
        ));
    }
    let mut opened = Vec::new();
    for (place, entry) in slaves {
        let mut program = Program::new();
        let path = program.cstr("/proc/self/fd/0");
        let fd = program.openat(libc::AT_FDCWD, path, entry.flags | O_NOCTTY | O_CLOEXEC, 0);
        let fd = cx.here().run(&program)?.fd(fd);
        let mut program = Program::new();
        terminal::set(&mut program, fd, info);
        cx.here().run(&program)?;
        opened.push((*place, fd));
    }
    Ok(opened)
}

/// Opens masters until one has this index: the kernel gives the lowest that is free.
fn open_master(
    cx: &mut dyn RestoreCx,
    index: u32,
    open: &mut dyn FnMut(&mut dyn RestoreCx) -> Result<i32>,
) -> Result<i32> {
    let mut others = Vec::new();
    let found = loop {
        let fd = open(cx)?;
        match number(fd, libc::TIOCGPTN)? {
            Some(got) if got == index => break Some(fd),
            Some(got) if got < index => others.push(fd),
            _ => {
                others.push(fd);
                break None;
            }
        }
    };
    let mut program = Program::new();
    for fd in others {
        program.close(fd);
    }
    cx.here().run(&program)?;
    found.ok_or_else(|| {
        Error::unsupported(
            format!("terminal {index} is taken by somebody else"),
            "close it, or restore with a devpts of its own",
        )
    })
}

fn lock(cx: &mut dyn RestoreCx, master: i32, on: u32) -> Result<()> {
    let mut program = Program::new();
    let on = program.bytes(on.to_ne_bytes());
    program.ioctl(master, request(libc::TIOCSPTLCK), on);
    cx.here().run(&program)?;
    Ok(())
}

/// Which session has which terminal: the descriptor here, and the group in the foreground.
#[derive(Debug, Default)]
pub(crate) struct Controlling {
    pub(crate) sessions: RefCell<BTreeMap<u32, (i32, u32)>>,
    /// Opened for this only.
    pub(crate) extra: RefCell<Vec<i32>>,
}

fn control(cx: &mut dyn RestoreCx, info: &pb::TtyInfoEntry, fd: i32) -> Result<()> {
    if info.sid == 0 {
        return Ok(());
    }
    // The descriptor itself will have another number.
    let mut program = Program::new();
    let copy = program.fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
    let copy = cx.here().run(&program)?.fd(copy);
    let all = cx.cached(|_| Ok(Controlling::default()))?;
    all.extra.borrow_mut().push(copy);
    let mut sessions = all.sessions.borrow_mut();
    sessions.entry(info.sid).or_insert((copy, info.pgrp));
    Ok(())
}
