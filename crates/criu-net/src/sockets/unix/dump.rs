//! A unix socket, described.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use criu_image::{desc, pb};
use criu_kind::{DumpCx, Error, FileEntry, OpenFile, Result};
use criu_proc::ProcDir;
use criu_tracee::{Local, Program, Site};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{FileStat, lstat};
use nix::unistd::Pid;

use crate::sockets::diag::{self, UnixInfo, UnixSockets};
use crate::sockets::message::number;
use crate::sockets::queue::{self, Packet, SO_PASSPIDFD};
use crate::sockets::{options, unix::kind};

/// `SIOCUNIXFILE` of `include/uapi/linux/un.h`, Linux 4.12.
pub(crate) const SIOCUNIXFILE: u32 = 0x89e0;
/// `SO_PASSRIGHTS` of `include/uapi/asm-generic/socket.h`, Linux 6.16.
pub(crate) const SO_PASSRIGHTS: i32 = 83;
const DELETED: &[u8] = b" (deleted)";

/// The number of a socket, and what the kernel says of it.
pub(crate) fn info(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
) -> Result<(u32, Rc<UnixSockets>, UnixInfo)> {
    let all = cx.cached(UnixSockets::ask)?;
    let inode = u32::try_from(file.inode.ino).unwrap_or(0);
    let info = all.get(inode)?.ok_or_else(|| {
        Error::unsupported(
            "a unix socket of another network namespace",
            "run criu inside that namespace (nsenter), or let the task close the socket",
        )
    })?;
    Ok((inode, all, info))
}

/// Everything but what refers to other sockets.
pub(crate) fn describe(cx: &mut dyn DumpCx, file: &OpenFile) -> Result<pb::UnixSkEntry> {
    let (inode, all, info) = info(cx, file)?;
    let known = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];
    if !known
        .iter()
        .any(|kind| u32::try_from(*kind) == Ok(info.kind))
    {
        return Err(Error::unsupported(
            format!("a unix socket of type {}", info.kind),
            "let the task close it before the dump",
        ));
    }
    let own = cx.cached(Own::look)?;
    own.known.borrow_mut().insert(inode);
    let mut entry = pb::UnixSkEntry {
        id: file.number(),
        ino: inode,
        r#type: info.kind,
        state: info.state,
        flags: file.flags(),
        uflags: 0,
        backlog: info.sent,
        peer: 0,
        fown: file.owner,
        opts: options::read(&file.fd)?,
        name: info.name.clone(),
        shutdown: (info.shutdown != 0).then_some(info.shutdown.into()),
        file_perms: None,
        name_dir: None,
        deleted: None,
        ns_id: cx.namespace("net", own.netns),
        mnt_id: None,
    };
    if info.name.first().is_some_and(|first| *first != 0) {
        name(file, &mut entry)?;
    }
    // Whether the socket itself belongs to another user than the one who will make it.
    let has_owner = (file.inode.uid, file.inode.gid) != own.user;
    let mut ext = pb::UnixExtEntry {
        unix_id: entry.id,
        peer: peer(cx, file)?,
        peek_off: number(&file.fd, libc::SO_PEEK_OFF, "getsockopt(SO_PEEK_OFF)")?
            .map(u32::cast_signed)
            .filter(|offset| *offset >= 0),
        pass_pidfd: number(&file.fd, SO_PASSPIDFD, "getsockopt(SO_PASSPIDFD)")?
            .filter(|on| *on != 0)
            .map(|_| true),
        no_rights: number(&file.fd, SO_PASSRIGHTS, "getsockopt(SO_PASSRIGHTS)")?
            .filter(|on| *on == 0)
            .map(|_| true),
        pending: info.pending.clone(),
        uid: Some(file.inode.uid).filter(|_| has_owner),
        gid: Some(file.inode.gid).filter(|_| has_owner),
        ..pb::UnixExtEntry::default()
    };
    let is_stream = u32::try_from(libc::SOCK_STREAM) == Ok(info.kind);
    let is_dgram = u32::try_from(libc::SOCK_DGRAM) == Ok(info.kind);
    ext.orphan = (is_dgram && info.peer == Some(0)).then_some(true);
    if info.peer == Some(0) && all.listener_of(inode)?.is_some() {
        let status = ProcDir::open(file.pid)?.status()?;
        ext.connected = Some(pb::UcredEntry {
            pid: cx.vpid(file.pid).as_raw().unsigned_abs(),
            uid: status.uid.effective,
            gid: status.gid.effective,
        });
    }
    if info.state != diag::LISTEN {
        if is_stream && info.waiting > 0 {
            refuse_urgent(&file.fd)?;
        }
        if info.waiting > 0 || !is_stream {
            let most = entry.opts.so_sndbuf.max(info.waiting) as usize;
            keep(cx, entry.id, queue::peek(&file.fd, is_stream, most)?)?;
        }
    }
    // There is one of every socket: so a restore knows that it was not CRIU who wrote the images.
    let ext = pb::FilesExtEntry {
        unix: Some(ext),
        ..pb::FilesExtEntry::default()
    };
    cx.append(desc::FILES_EXT, (), &ext, &[])?;
    Ok(entry)
}

/// What is the same for all sockets, and which of them are of the tree.
struct Own {
    netns: u64,
    user: (u32, u32),
    known: RefCell<HashSet<u32>>,
}

impl Own {
    fn look() -> Result<Self> {
        Ok(Self {
            netns: ProcDir::open(Pid::this())?.ns("net")?.inode,
            user: (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ),
            known: RefCell::default(),
        })
    }
}

/// Writes what waits.
fn keep(cx: &mut dyn DumpCx, id: u32, packets: Vec<Packet>) -> Result<()> {
    for (index, packet) in (0..).zip(packets) {
        let mut rights = Vec::with_capacity(packet.rights.len());
        for fd in packet.rights {
            rights.push(cx.in_flight(fd)?.get());
        }
        let scm = (!rights.is_empty()).then(|| pb::ScmEntry {
            r#type: libc::SCM_RIGHTS.unsigned_abs(),
            rights,
        });
        let entry = pb::SkPacketEntry {
            id_for: id,
            length: u32::try_from(packet.data.len()).unwrap_or(u32::MAX),
            scm: scm.into_iter().collect(),
        };
        cx.append(desc::SK_QUEUES, (), &entry, &packet.data)?;
        let creds = packet.creds.map(|creds| own_pid(cx, creds));
        if creds.is_some() || !packet.sender.is_empty() {
            let ext = pb::PacketExtEntry {
                id_for: id,
                index,
                sender: (!packet.sender.is_empty()).then_some(packet.sender),
                creds,
            };
            let ext = pb::FilesExtEntry {
                packet: Some(ext),
                ..pb::FilesExtEntry::default()
            };
            cx.append(desc::FILES_EXT, (), &ext, &[])?;
        }
    }
    Ok(())
}

/// The pid as the tree has it.
fn own_pid(cx: &dyn DumpCx, creds: pb::UcredEntry) -> pb::UcredEntry {
    let pid = Pid::from_raw(creds.pid.cast_signed());
    let pid = if cx.in_tree(pid) { cx.vpid(pid) } else { pid };
    pb::UcredEntry {
        pid: pid.as_raw().unsigned_abs(),
        ..creds
    }
}

/// Who is at the other end; `None` if nobody ever was.
fn peer(cx: &dyn DumpCx, file: &OpenFile) -> Result<Option<pb::UcredEntry>> {
    let creds = getsockopt(&file.fd, sockopt::PeerCredentials)
        .map_err(Error::kernel("getsockopt(SO_PEERCRED)"))?;
    let known = creds.pid() != 0 || creds.uid() != u32::MAX;
    Ok(known.then(|| {
        let creds = pb::UcredEntry {
            pid: creds.pid().unsigned_abs(),
            uid: creds.uid(),
            gid: creds.gid(),
        };
        own_pid(cx, creds)
    }))
}

/// A byte out of band can be found, but not where in the stream it was.
fn refuse_urgent(fd: &OwnedFd) -> Result<()> {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(fd.as_raw_fd(), &mut [0; 1], flags) {
        Ok(1) => Err(Error::unsupported(
            "a byte out of band (MSG_OOB) waits in it",
            "let the task read it before the dump",
        )),
        _ => Ok(()),
    }
}

/// Where its file is, and whether it still is there.
fn name(file: &OpenFile, entry: &mut pb::UnixSkEntry) -> Result<()> {
    let name = entry
        .name
        .strip_suffix(&[0])
        .unwrap_or(&entry.name)
        .to_vec();
    let process = ProcDir::open(file.pid)?;
    let bound = bound_file(&file.fd)?;
    if let Some((stat, link)) = &bound {
        permissions(entry, stat);
        let path = link.strip_suffix(DELETED).unwrap_or(link);
        let mut at = path.to_vec();
        if !name.starts_with(b"/") {
            let below = [b"/", &name[..]].concat();
            let dir = match path.strip_suffix(&below[..]) {
                Some([]) => b"/".to_vec(),
                Some(dir) => dir.to_vec(),
                // It has been moved.
                None => process.readlink("cwd")?.as_os_str().as_bytes().to_vec(),
            };
            at = [&dir[..], &below].concat();
            entry.name_dir = Some(dir);
        } else if path != name {
            at.clone_from(&name);
        }
        if !leads(&at, stat)? {
            entry.deleted = Some(true);
        }
        return Ok(());
    }
    // Without the privilege to ask for the file: where it should be.
    let mut at = name.clone();
    if !name.starts_with(b"/") {
        let dir = process.readlink("cwd")?.as_os_str().as_bytes().to_vec();
        at = [&dir[..], b"/", &name].concat();
        entry.name_dir = Some(dir);
    }
    match lstat(path(&at)) {
        Ok(stat) => permissions(entry, &stat),
        Err(_) => entry.deleted = Some(true),
    }
    Ok(())
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn permissions(entry: &mut pb::UnixSkEntry, stat: &FileStat) {
    #[allow(
        clippy::useless_conversion,
        reason = "the mode has other widths on other machines"
    )]
    let mode = stat.st_mode.into();
    entry.file_perms = Some(pb::FilePermsEntry {
        mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    });
}

fn leads(at: &[u8], stat: &FileStat) -> Result<bool> {
    match lstat(path(at)) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::Kernel {
            call: "lstat",
            errno,
        }),
    }
}

/// The file a socket is bound to, and what `/proc` calls it; `None` without `CAP_NET_ADMIN`.
fn bound_file(fd: &OwnedFd) -> Result<Option<(FileStat, Vec<u8>)>> {
    let mut program = Program::new();
    let got = program.ioctl(fd.as_raw_fd(), SIOCUNIXFILE, 0);
    program.tolerate();
    let bound = match Local.run(&program)?.get(got) {
        Ok(bound) => i32::try_from(bound).unwrap_or(-1),
        Err(Errno::EPERM) => return Ok(None),
        Err(errno) => {
            return Err(Error::Kernel {
                call: "ioctl(SIOCUNIXFILE)",
                errno,
            });
        }
    };
    let link = std::fs::read_link(format!("/proc/self/fd/{bound}"));
    let stat = nix::sys::stat::stat(format!("/proc/self/fd/{bound}").as_str());
    nix::unistd::close(bound).map_err(Error::kernel("close"))?;
    let link = link.map_err(Error::io("readlink"))?;
    let stat = stat.map_err(Error::kernel("stat"))?;
    Ok(Some((stat, link.into_os_string().into_encoded_bytes())))
}

/// Fills in what refers to other sockets, when all are known.
pub(crate) fn relate(
    cx: &mut dyn DumpCx,
    file: &OpenFile,
    entry: &mut pb::UnixSkEntry,
) -> Result<()> {
    let (inode, all, info) = info(cx, file)?;
    let is_dgram = u32::try_from(libc::SOCK_DGRAM) == Ok(info.kind);
    match info.peer {
        Some(peer) if peer != 0 => {
            if !is_known(cx, peer)? {
                outside(cx, inode, &info, peer, &all)?;
            }
            entry.peer = peer;
        }
        _ if info.state == diag::LISTEN => {
            if info.pending.contains(&0) {
                return Err(Error::unsupported(
                    "a connection waits to be accepted that is closed already, perhaps with data",
                    "let the task accept it before the dump",
                ));
            }
            for pending in &info.pending {
                if !is_known(cx, *pending)? {
                    tracing::warn!(
                        socket = inode,
                        client = pending,
                        "a client outside of the tree waits to be accepted; it will have to connect again"
                    );
                }
            }
        }
        _ if is_dgram || info.state != diag::ESTABLISHED => {}
        _ => {
            let Some(listener) = all.listener_of(inode)? else {
                if info.shutdown == 3 {
                    return Ok(()); // The other end is closed.
                }
                return Err(Error::unsupported(
                    "a connection whose other end is neither open nor closed",
                    "try again",
                ));
            };
            if info.sent != 0 {
                return Err(Error::unsupported(
                    "data was sent through it before anybody accepted the connection",
                    "let the server accept it before the dump",
                ));
            }
            if !is_known(cx, listener)? {
                outside(cx, inode, &info, listener, &all)?;
            }
            entry.peer = listener;
        }
    }
    Ok(())
}

/// Whether the socket of this inode is among those of the tree, which are all described by now.
fn is_known(cx: &mut dyn DumpCx, inode: u32) -> Result<bool> {
    Ok(cx.cached(Own::look)?.known.borrow().contains(&inode))
}

/// Describes a peer outside of the tree, if the user wants that.
fn outside(
    cx: &mut dyn DumpCx,
    inode: u32,
    info: &UnixInfo,
    peer: u32,
    all: &UnixSockets,
) -> Result<()> {
    let name = all.get(peer)?.map(|peer| peer.name).unwrap_or_default();
    let text = match name.split_first() {
        None => "without a name".to_owned(),
        Some((0, name)) => format!("@{}", name.escape_ascii()),
        Some(_) => name
            .strip_suffix(&[0])
            .unwrap_or(&name)
            .escape_ascii()
            .to_string(),
    };
    if !cx.is_external(&format!("unix[{inode}]")) {
        let is_dgram = u32::try_from(libc::SOCK_DGRAM) == Ok(info.kind);
        let fact =
            format!("it is connected to socket {peer} ({text}), which is outside of the tree");
        if !is_dgram {
            return Err(Error::unsupported(
                fact,
                format!(
                    "dump the other process too; or leave the connection outside with --external unix[{inode}], \
                     and give another one with --inherit-fd fd[N]:socket:[{inode}]"
                ),
            ));
        }
        if name.is_empty() {
            return Err(Error::unsupported(
                fact,
                format!("dump the other process too, or use --external unix[{inode}]"),
            ));
        }
        if !cx.is_external("unix[*]") {
            return Err(Error::unsupported(
                fact,
                "connect to the same name at restore with --ext-unix-sk, or dump the other process too",
            ));
        }
    }
    if cx.first(kind::OUTSIDE, peer.into()) {
        cx.part(&mut |_, id| {
            let entry = pb::UnixSkEntry {
                id: id.get(),
                ino: peer,
                r#type: libc::SOCK_DGRAM.unsigned_abs(),
                state: diag::LISTEN,
                uflags: kind::EXTERN,
                name: name.clone(),
                ..pb::UnixSkEntry::default()
            };
            Ok(entry.into_file())
        })?;
    }
    Ok(())
}
