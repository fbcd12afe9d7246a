//! The one table of images: file name, magic number, messages, and what follows them.
//!
//! Everything else that depends on the kind of an image is derived from here.
use std::fmt;

use prost::{DecodeError, Message, Name};

pub use crate::layout::Layout;
use crate::pb;

/// First number of an image since format 1.1; the number of its kind is the second.
pub const COMMON_MAGIC: u32 = 0x5456_4319;
/// First number of an image that is not part of a dump.
pub const SERVICE_MAGIC: u32 = 0x5510_5940;

/// A kind of image.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    /// Start of the file name.
    pub stem: &'static str,
    /// What the name has after a hyphen.
    pub id: IdForm,
    /// End of the file name.
    pub suffix: &'static str,
    /// What comes before the magic number.
    pub prefix: Prefix,
    /// The number that marks this kind; 0 if the image is raw.
    pub magic: u32,
    /// How entries follow each other.
    pub layout: Layout,
    /// The messages of the entries; the layout says which is where.
    pub messages: &'static [MessageType],
}

/// What tells images of one kind apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// There is only one.
    Single,
    /// A number in decimal.
    Decimal,
    /// A number in hexadecimal.
    Hex,
    /// A word.
    Word,
}

/// The numbers at the start of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// [`COMMON_MAGIC`], then its own; only its own in images of format 1.0.
    Common,
    /// [`SERVICE_MAGIC`], then its own.
    Service,
    /// Only its own.
    Own,
    /// None: the file is raw data.
    None,
}

/// Which image of its kind: a number, a word, or `()` when there is only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageId {
    /// There is only one.
    Single,
    /// By number.
    Number(u64),
    /// By word.
    Word(String),
}

/// A message type, as far as it can be handled without naming it.
#[derive(Clone, Copy)]
pub struct MessageType {
    /// The name in `proto/`.
    pub name: &'static str,
    reencode: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
}

macro_rules! images {
    ($($(#[$doc:meta])* $name:ident = $stem:literal $id:ident $suffix:literal,
       $prefix:ident $magic:literal, $layout:ident [$($message:ident),*];)*) => {
        $($(#[$doc])*
        pub const $name: &Desc = &Desc {
            stem: $stem,
            id: IdForm::$id,
            suffix: $suffix,
            prefix: Prefix::$prefix,
            magic: $magic,
            layout: Layout::$layout,
            messages: &[$(MessageType::of::<pb::$message>()),*],
        };)*

        /// Every kind.
        pub const ALL: &[&Desc] = &[$($name),*];
    };
}

images! {
    /// How all other images were written. Written last.
    INVENTORY = "inventory" Single ".img", Own 0x58313116, Entries [InventoryEntry];
    /// The process tree.
    PSTREE = "pstree" Single ".img", Common 0x50273030, Entries [PstreeEntry];
    /// Which objects a task shares with which other.
    IDS = "ids" Decimal ".img", Common 0x54432030, Entries [TaskKobjIdsEntry];
    /// A task or a thread.
    CORE = "core" Decimal ".img", Common 0x55053847, Entries [CoreEntry];
    /// An address space.
    MM = "mm" Decimal ".img", Common 0x57492820, Entries [MmEntry];
    /// Working directory, root and umask.
    FS = "fs" Decimal ".img", Common 0x51403912, Entries [FsEntry];
    /// A descriptor table.
    FDINFO = "fdinfo" Decimal ".img", Common 0x56213732, Entries [FdinfoEntry];
    /// All open files, of every kind.
    FILES = "files" Single ".img", Common 0x56303138, Entries [FileEntry];
    /// Which pages of an address space are where.
    PAGEMAP = "pagemap" Decimal ".img", Common 0x56084025, Headed [PagemapHead, PagemapEntry];
    /// Which pages of a shared memory object are where.
    SHMEM_PAGEMAP = "pagemap-shmem" Decimal ".img", Common 0x56084025, Headed [PagemapHead, PagemapEntry];
    /// All seccomp filters.
    SECCOMP = "seccomp" Single ".img", Common 0x64413049, Entries [SeccompEntry];
    /// AppArmor policies.
    APPARMOR = "apparmor" Single ".img", Common 0x59423047, Entries [ApparmorEntry];
    /// Control groups.
    CGROUP = "cgroup" Single ".img", Common 0x59383330, Entries [CgroupEntry];
    /// File locks.
    FILE_LOCKS = "filelocks" Single ".img", Common 0x54323616, Entries [FileLockEntry];
    /// Where unlinked files are found.
    REMAP_FPATH = "remap-fpath" Single ".img", Common 0x59133954, Entries [RemapFilePathEntry];
    /// An unlinked file with its content.
    GHOST_FILE = "ghost-file" Hex ".img", Common 0x52583605, Ghost [GhostFileEntry, GhostChunkEntry];
    /// The inodes of memfds.
    MEMFD = "memfd" Single ".img", Common 0x48453499, Entries [MemfdInodeEntry];
    /// Content of BPF maps.
    BPFMAP_DATA = "bpfmap-data" Single ".img", Common 0x64324033, BpfMap [BpfmapDataEntry];
    /// State of terminals.
    TTY_INFO = "tty-info" Single ".img", Common 0x59453036, Entries [TtyInfoEntry];
    /// Unread data of terminals.
    TTY_DATA = "tty-data" Single ".img", Common 0x59413026, Entries [TtyDataEntry];
    /// What waits in pipes.
    PIPES_DATA = "pipes-data" Single ".img", Common 0x56453709, Pipe [PipeDataEntry];
    /// What waits in FIFOs.
    FIFO_DATA = "fifo-data" Single ".img", Common 0x59333054, Pipe [PipeDataEntry];
    /// Packets waiting in sockets.
    SK_QUEUES = "sk-queues" Single ".img", Common 0x56264026, Packets [SkPacketEntry];
    /// A TCP connection with its queues, by inode.
    TCP_STREAM = "tcp-stream" Hex ".img", Common 0x51465506, TcpQueues [TcpStreamEntry];
    /// A UTS namespace.
    UTSNS = "utsns" Decimal ".img", Common 0x54473203, Entries [UtsnsEntry];
    /// A time namespace.
    TIMENS = "timens" Decimal ".img", Common 0x43114433, Entries [TimensEntry];
    /// A PID namespace.
    PIDNS = "pidns" Decimal ".img", Common 0x61157326, Entries [PidnsEntry];
    /// A user namespace.
    USERNS = "userns" Decimal ".img", Common 0x55474906, Entries [UsernsEntry];
    /// A mount namespace.
    MNTS = "mountpoints" Decimal ".img", Common 0x55563928, Entries [MntEntry];
    /// An autofs mount.
    AUTOFS = "autofs" Decimal ".img", Common 0x49353943, Entries [AutofsEntry];
    /// Registered interpreters.
    BINFMT_MISC = "binfmt-misc" Single ".img", Common 0x67343323, Entries [BinfmtMiscEntry];
    /// Registered interpreters, by mount, as older versions wrote them.
    BINFMT_MISC_OLD = "binfmt-misc" Decimal ".img", Common 0x67343323, Entries [BinfmtMiscEntry];
    /// Limits of an IPC namespace.
    IPC_VAR = "ipcns-var" Decimal ".img", Common 0x53115007, Entries [IpcVarEntry];
    /// System V shared memory.
    IPC_SHM = "ipcns-shm" Decimal ".img", Common 0x46283044, Segments [IpcShmEntry];
    /// System V message queues.
    IPC_MSG = "ipcns-msg" Decimal ".img", Common 0x55453737, MessageQueues [IpcMsgEntry, IpcMsg];
    /// System V semaphores.
    IPC_SEM = "ipcns-sem" Decimal ".img", Common 0x59573019, Semaphores [IpcSemEntry];
    /// Settings of a network namespace.
    NETNS = "netns" Decimal ".img", Common 0x55933752, Entries [NetnsEntry];
    /// Network devices.
    NETDEV = "netdev" Decimal ".img", Common 0x57373951, Entries [NetDeviceEntry];
    /// Features of the processor.
    CPUINFO = "cpuinfo" Single ".img", Common 0x61404013, Entries [CpuinfoEntry];
    /// Statistics of a dump or restore; in the work directory.
    STATS = "stats" Word "", Service 0x57093306, Entries [StatsEntry];
    /// Paths remembered by inode; in the work directory.
    IRMAP_CACHE = "irmap-cache" Single "", Service 0x57004059, Entries [IrmapCacheEntry];
    /// Pages, one after the other.
    PAGES = "pages" Decimal ".img", None 0x00000000, Raw [];
    /// Content of a tmpfs, as an archive.
    TMPFS = "tmpfs" Decimal ".tar.gz.img", None 0x00000000, Raw [];
    /// Content of a tmpfs, by device number.
    TMPFS_DEV = "tmpfs-dev" Decimal ".tar.gz.img", None 0x00000000, Raw [];
    /// Network addresses, as `ip address save` prints them.
    IFADDR = "ifaddr" Decimal ".img", None 0x00000000, Raw [];
    /// IPv4 routes, as `ip route save` prints them.
    ROUTE = "route" Decimal ".img", None 0x00000000, Raw [];
    /// IPv6 routes.
    ROUTE6 = "route6" Decimal ".img", None 0x00000000, Raw [];
    /// Routing rules.
    RULE = "rule" Decimal ".img", None 0x00000000, Raw [];
    /// IPv4 packet filter, as text.
    IPTABLES = "iptables" Decimal ".img", None 0x00000000, Raw [];
    /// IPv6 packet filter, as text.
    IP6TABLES = "ip6tables" Decimal ".img", None 0x00000000, Raw [];
    /// nftables rules, as text.
    NFTABLES = "nftables" Decimal ".img", None 0x00000000, Raw [];
    /// Connection tracking, as netlink messages.
    NETNS_CT = "netns-ct" Decimal ".img", None 0x00000000, Raw [];
    /// Expected connections, as netlink messages.
    NETNS_EXP = "netns-exp" Decimal ".img", None 0x00000000, Raw [];
    /// What CRIU loses about the threads of a task. Ours, not theirs.
    TASK_EXT = "criu-rs-task" Decimal ".img", Common 0x43525453, Entries [TaskExtEntry];
    /// What CRIU loses about an address space. Ours, not theirs.
    MM_EXT = "criu-rs-mm" Decimal ".img", Common 0x43524d4d, Entries [MmExtEntry];
    /// What CRIU loses about files. Ours, not theirs.
    FILES_EXT = "criu-rs-files" Single ".img", Common 0x43524653, Entries [FilesExtEntry];
    /// What CRIU loses about BPF objects. Ours, not theirs.
    BPF_EXT = "criu-rs-bpf" Single ".img", Common 0x43524250, Entries [BpfExtEntry];
    /// What CRIU loses about System V IPC. Ours, not theirs.
    IPC_EXT = "criu-rs-ipc" Decimal ".img", Common 0x43524950, Entries [IpcExtEntry];

    // Only read: before 3.4 each kind of file had its own image, before 1.4 so had each part of a task.
    /// Open paths; now inside `files`.
    REG_FILES = "reg-files" Single ".img", Common 0x50363636, Entries [RegFileEntry];
    /// Files of plugins; now inside `files`.
    EXT_FILES = "ext-files" Single ".img", Common 0x59255641, Entries [ExtFileEntry];
    /// Pipe ends; now inside `files`.
    PIPES = "pipes" Single ".img", Common 0x56513555, Entries [PipeEntry];
    /// FIFO ends; now inside `files`.
    FIFO = "fifo" Single ".img", Common 0x58364939, Entries [FifoEntry];
    /// Unix sockets; now inside `files`.
    UNIXSK = "unixsk" Single ".img", Common 0x54373943, Entries [UnixSkEntry];
    /// Internet sockets; now inside `files`.
    INETSK = "inetsk" Single ".img", Common 0x56443851, Entries [InetSkEntry];
    /// Packet sockets; now inside `files`.
    PACKETSK = "packetsk" Single ".img", Common 0x60454618, Entries [PacketSockEntry];
    /// Netlink sockets; now inside `files`.
    NETLINKSK = "netlinksk" Single ".img", Common 0x58005614, Entries [NetlinkSkEntry];
    /// Event counters; now inside `files`.
    EVENTFD = "eventfd" Single ".img", Common 0x44523722, Entries [EventfdFileEntry];
    /// Epoll sets; now inside `files`.
    EVENTPOLL = "eventpoll" Single ".img", Common 0x45023858, Entries [EventpollFileEntry];
    /// Members of epoll sets; now inside `files`.
    EVENTPOLL_TFD = "eventpoll-tfd" Single ".img", Common 0x44433746, Entries [EventpollTfdEntry];
    /// Signal descriptors; now inside `files`.
    SIGNALFD = "signalfd" Single ".img", Common 0x57323820, Entries [SignalfdEntry];
    /// inotify groups; now inside `files`.
    INOTIFY = "inotify" Single ".img", Common 0x48424431, Entries [InotifyFileEntry];
    /// inotify watches; now inside `files`.
    INOTIFY_WD = "inotify-wd" Single ".img", Common 0x54562009, Entries [InotifyWdEntry];
    /// fanotify groups; now inside `files`.
    FANOTIFY = "fanotify" Single ".img", Common 0x55096122, Entries [FanotifyFileEntry];
    /// fanotify marks; now inside `files`.
    FANOTIFY_MARK = "fanotify-mark" Single ".img", Common 0x56506035, Entries [FanotifyMarkEntry];
    /// Terminals; now inside `files`.
    TTY = "tty" Single ".img", Common 0x59433025, Entries [TtyFileEntry];
    /// Open tun devices; now inside `files`.
    TUNFILE = "tunfile" Single ".img", Common 0x57143751, Entries [TunfileEntry];
    /// Namespace files; now inside `files`.
    NS_FILES = "ns-files" Single ".img", Common 0x61394011, Entries [NsFileEntry];
    /// Timer descriptors; now inside `files`.
    TIMERFD = "timerfd" Single ".img", Common 0x50493712, Entries [TimerfdEntry];
    /// BPF maps; now inside `files`.
    BPFMAP_FILE = "bpfmap-file" Single ".img", Common 0x57506142, Entries [BpfmapFileEntry];
    /// Process descriptors; now inside `files`.
    PIDFD = "pidfd" Single ".img", Common 0x54435556, Entries [PidfdEntry];
    /// Mappings; now inside `mm`.
    VMAS = "vmas" Decimal ".img", Common 0x54123737, Entries [VmaEntry];
    /// Credentials; now inside `core`.
    CREDS = "creds" Decimal ".img", Common 0x54023547, Entries [CredsEntry];
    /// Signal actions; now inside `core`.
    SIGACTS = "sigacts" Decimal ".img", Common 0x55344201, Entries [SaEntry];
    /// Interval timers; now inside `core`.
    ITIMERS = "itimers" Decimal ".img", Common 0x57464056, Entries [ItimerEntry];
    /// POSIX timers; now inside `core`.
    POSIX_TIMERS = "posix-timers" Decimal ".img", Common 0x52603957, Entries [PosixTimerEntry];
    /// Resource limits; now inside `core`.
    RLIMIT = "rlimit" Decimal ".img", Common 0x57113925, Entries [RlimitEntry];
    /// Signals queued for a process; now inside `core`.
    SIGNAL = "signal-s" Decimal ".img", Common 0x59255647, Entries [SiginfoEntry];
    /// Signals queued for a thread; now inside `core`.
    PSIGNAL = "signal-p" Decimal ".img", Common 0x59255647, Entries [SiginfoEntry];
    /// Pages of a shared memory object, as very old versions wrote them.
    SHM_PAGES_OLD = "pages-shmem" Decimal ".img", None 0x00000000, Raw [];
}

impl Desc {
    /// The file name of one image: `core-42.img`.
    pub fn file_name(&self, id: impl Into<ImageId>) -> String {
        let Self { stem, suffix, .. } = self;
        match (id.into(), self.id) {
            (ImageId::Single, _) => format!("{stem}{suffix}"),
            (ImageId::Number(n), IdForm::Hex) => format!("{stem}-{n:x}{suffix}"),
            (ImageId::Number(n), _) => format!("{stem}-{n}{suffix}"),
            (ImageId::Word(word), _) => format!("{stem}-{word}{suffix}"),
        }
    }

    /// Whether this is the name of its only image.
    pub(crate) fn is(&self, name: &str) -> bool {
        name.strip_prefix(self.stem) == Some(self.suffix)
    }

    /// The kind of a file, by its name, and which of its kind it is.
    pub fn of_file(name: &str) -> Option<(&'static Self, ImageId)> {
        ALL.iter().find_map(|desc| Some((*desc, desc.id_of(name)?)))
    }

    /// Whether the file is raw data.
    pub fn is_raw(&self) -> bool {
        self.layout == Layout::Raw
    }

    fn id_of(&self, name: &str) -> Option<ImageId> {
        let rest = name.strip_prefix(self.stem)?.strip_suffix(self.suffix)?;
        if self.id == IdForm::Single {
            return rest.is_empty().then_some(ImageId::Single);
        }
        let text = rest.strip_prefix('-')?;
        let id = match self.id {
            IdForm::Hex => ImageId::Number(u64::from_str_radix(text, 16).ok()?),
            IdForm::Decimal => ImageId::Number(text.parse().ok()?),
            _ => ImageId::Word(text.to_owned()),
        };
        (self.file_name(id.clone()) == name).then_some(id)
    }
}

impl MessageType {
    const fn of<M: Message + Default + Name>() -> Self {
        Self {
            name: M::NAME,
            reencode: reencode::<M>,
        }
    }

    /// Decodes and encodes again: other bytes mean that something in `raw` is not understood.
    pub fn reencode(&self, raw: &[u8]) -> Result<Vec<u8>, DecodeError> {
        (self.reencode)(raw)
    }
}

fn reencode<M: Message + Default>(raw: &[u8]) -> Result<Vec<u8>, DecodeError> {
    M::decode(raw).map(|message| message.encode_to_vec())
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl From<()> for ImageId {
    fn from((): ()) -> Self {
        Self::Single
    }
}

impl From<u32> for ImageId {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for ImageId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for ImageId {
    fn from(word: &str) -> Self {
        Self::Word(word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_lead_back_to_their_kind() {
        for desc in ALL {
            let id = match desc.id {
                IdForm::Single => ImageId::Single,
                IdForm::Decimal | IdForm::Hex => ImageId::Number(65_011),
                IdForm::Word => ImageId::from("dump"),
            };
            let name = desc.file_name(id.clone());
            let (found, found_id) = Desc::of_file(&name).unwrap();
            assert!(
                std::ptr::eq(found, *desc) || found.stem == desc.stem,
                "{name}"
            );
            assert_eq!(found_id, id, "{name}");
        }
    }

    #[test]
    fn no_two_kinds_have_one_name() {
        let names: BTreeSet<_> = ALL
            .iter()
            .map(|d| (d.stem, d.id == IdForm::Single))
            .collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn odd_names_are_no_image() {
        for name in [
            "core-.img",
            "core-007.img",
            "core-+7.img",
            "core-7",
            "inventory",
            "cores.img",
        ] {
            assert!(Desc::of_file(name).is_none(), "{name}");
        }
        assert_eq!(TCP_STREAM.file_name(0xbeefu32), "tcp-stream-beef.img");
        assert_eq!(TMPFS_DEV.file_name(9u32), "tmpfs-dev-9.tar.gz.img");
        assert_eq!(STATS.file_name("dump"), "stats-dump");
    }

    #[test]
    fn layouts_with_two_messages_have_two() {
        for desc in ALL {
            let expected = match desc.layout {
                Layout::Raw => 0,
                Layout::Headed | Layout::MessageQueues | Layout::Ghost => 2,
                _ => 1,
            };
            assert_eq!(desc.messages.len(), expected, "{}", desc.stem);
        }
    }
}
