//! The members of the union that `files.img` is made of.

use criu_image::id::FileId;
use criu_image::pb;
use prost::{Message, Name};

/// A member of the union in `files.img`.
pub trait FileEntry: Message + Name + Default + Clone {
    /// Which member.
    const TYPE: pb::FdTypes;
    /// The id.
    fn id(&self) -> FileId;
    /// The member of a union.
    fn of(file: &pb::FileEntry) -> Option<&Self>;
    /// The union with this member.
    fn into_file(self) -> pb::FileEntry;
    /// The flags of open(2), if the message has them.
    fn flags(&self) -> Option<u32>;
    /// The signal owner, if the message has one.
    fn owner(&self) -> Option<&pb::FownEntry>;
}

macro_rules! entries {
    ($($message:ident $kind:ident $member:ident $flags:tt $owner:tt;)*) => {
        $(impl FileEntry for pb::$message {
            const TYPE: pb::FdTypes = pb::FdTypes::$kind;
            fn id(&self) -> FileId {
                FileId::new(self.id)
            }
            fn of(file: &pb::FileEntry) -> Option<&Self> {
                file.$member.as_deref()
            }
            fn into_file(self) -> pb::FileEntry {
                pb::FileEntry {
                    r#type: pb::FdTypes::$kind.into(),
                    id: self.id,
                    $member: Some(self.into()),
                    ..pb::FileEntry::default()
                }
            }
            fn flags(&self) -> Option<u32> {
                entries!(@flags $flags self)
            }
            fn owner(&self) -> Option<&pb::FownEntry> {
                entries!(@owner $owner self)
            }
        })*
    };
    (@flags flags $self:ident) => { Some($self.flags) };
    (@flags - $self:ident) => { None };
    (@owner fown $self:ident) => { Some(&$self.fown) };
    (@owner - $self:ident) => { None };
}

entries! {
    BpfmapFileEntry Bpfmap bpf flags fown;
    EventfdFileEntry Eventfd efd flags fown;
    EventpollFileEntry Eventpoll epfd flags fown;
    ExtFileEntry Ext ext - fown;
    FanotifyFileEntry Fanotify ffy flags fown;
    FifoEntry Fifo fifo - -;
    InetSkEntry Inetsk isk flags fown;
    InotifyFileEntry Inotify ify flags fown;
    IoUringEntry IoUring io_uring flags fown;
    MemfdFileEntry Memfd memfd flags fown;
    MqueueFileEntry PosixMq mqueue flags fown;
    NetlinkSkEntry Netlinksk nlsk flags fown;
    NsFileEntry Ns nsf flags -;
    PacketSockEntry Packetsk psk flags fown;
    PidfdEntry Pidfd pidfd flags fown;
    PipeEntry Pipe pipe flags fown;
    RegFileEntry Reg reg flags fown;
    SignalfdEntry Signalfd sgfd flags fown;
    TimerfdEntry Timerfd tfd flags fown;
    TtyFileEntry Tty tty flags fown;
    TunfileEntry Tunf tunf - -;
    UnixSkEntry Unixsk usk flags fown;
}
