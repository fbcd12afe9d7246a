//! Pairs of terminals, opened under their numbers; and whose controlling terminals they are.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use criu_image::id::FileId;
use criu_image::{Store, StoreExt, desc, pb};
use criu_kind::{Error, RestoreCx, Result};
use criu_tracee::{Local, Program, Site};

use crate::terminal::{self, number, request};
use crate::terminal_data::Pair;

const O_RDWR: u32 = libc::O_RDWR.cast_unsigned();
const O_NOCTTY: u32 = libc::O_NOCTTY.cast_unsigned();
const O_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const O_NONBLOCK: u32 = libc::O_NONBLOCK.cast_unsigned();

/// The path of a terminal.
pub(crate) fn path_of(entry: &pb::TtyFileEntry) -> Result<FileId> {
    let path = entry.regf_id.map(FileId::new);
    path.ok_or_else(|| Error::corrupt("files.img", format!("terminal {} has no path", entry.id)))
}

/// The slave of a master, opened here.
pub(crate) fn peer(master: i32) -> Result<i32> {
    let mut program = Program::new();
    let flags = O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK;
    let slave = program.ioctl(master, request(libc::TIOCGPTPEER), flags);
    Ok(Local.run(&program)?.fd(slave))
}

/// All images of terminals.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    infos: HashMap<u32, pb::TtyInfoEntry>,
    data: HashMap<u32, Vec<u8>>,
}

impl Saved {
    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let infos = store.entries::<pb::TtyInfoEntry>(desc::TTY_INFO, ())?;
        let data = store.entries::<pb::TtyDataEntry>(desc::TTY_DATA, ())?;
        let infos = infos.unwrap_or_default().into_iter();
        let data = data.unwrap_or_default().into_iter();
        Ok(Self {
            infos: infos.map(|info| (info.message.id, info.message)).collect(),
            data: data
                .map(|data| (data.message.tty_id, data.message.data))
                .collect(),
        })
    }

    pub(crate) fn info(&self, id: u32) -> Result<&pb::TtyInfoEntry> {
        let info = self.infos.get(&id);
        info.ok_or_else(|| Error::corrupt("tty-info.img", format!("terminal {id} is not there")))
    }
}

/// Opens all ends of a pair.
pub(crate) fn open_pair(
    cx: &mut dyn RestoreCx,
    saved: &Saved,
    ends: &[(usize, &pb::TtyFileEntry)],
) -> Result<Vec<(usize, i32)>> {
    let (masters, slaves): (Vec<_>, Vec<_>) = ends
        .iter()
        .partition(|(_, entry)| entry.tty_info_id & 1 == 1);
    let any = ends
        .first()
        .ok_or_else(|| Error::corrupt("files.img", "no terminal"))?;
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
            open_master(cx, index, &mut |cx| {
                cx.open_path(path, Some(entry.flags | O_NOCTTY))
            })?
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
    let always = always(cx, master)?;
    for (place, entry) in &slaves {
        // One that was opened through its master has not the flag that the kernel adds for large files.
        let fd = match entry.flags & always == always {
            true => cx.open_path(path_of(entry)?, Some(entry.flags | O_NOCTTY))?,
            false => {
                let mut program = Program::new();
                // `O_CLOEXEC` would stay among the flags of the file.
                let flags = entry.flags | O_NOCTTY;
                let fd = program.ioctl(master, request(libc::TIOCGPTPEER), flags);
                cx.here().run(&program)?.fd(fd)
            }
        };
        opened.push((*place, fd));
    }
    let slave_info = slaves
        .first()
        .map(|(_, entry)| saved.info(entry.tty_info_id));
    let slave_info = slave_info.transpose()?;
    if hung {
        let mut program = Program::new();
        program.close(master);
        cx.here().run(&program)?;
        return Ok(opened);
    }
    // Without a slave nobody has opened one yet; then there is nothing to set but at the master.
    let first_slave = slaves.first().and_then(|(place, _)| {
        opened
            .iter()
            .find(|(known, _)| known == place)
            .map(|(_, fd)| *fd)
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
    let lines = saved
        .data
        .get(&(info.id & !1))
        .map_or(&[][..], Vec::as_slice);
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

/// The flags that openat(2) adds on this machine, seen at a file that it has opened.
fn always(cx: &mut dyn RestoreCx, fd: i32) -> Result<u32> {
    const KNOWN: i32 = libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_NONBLOCK
        | libc::O_SYNC
        | libc::O_ASYNC
        | libc::O_DIRECT
        | libc::O_NOATIME
        | libc::O_NOCTTY
        | libc::O_CLOEXEC;
    let mut program = Program::new();
    let flags = program.fcntl(fd, libc::F_GETFL, 0);
    let flags = cx.here().run(&program)?.value(flags);
    Ok(u32::try_from(flags).unwrap_or(0) & !KNOWN.cast_unsigned())
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
            format!(
                "restore from a terminal with --shell-job, or give one with --inherit-fd fd[N]:{key}"
            ),
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

pub(crate) fn control(cx: &mut dyn RestoreCx, info: &pb::TtyInfoEntry, fd: i32) -> Result<()> {
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
