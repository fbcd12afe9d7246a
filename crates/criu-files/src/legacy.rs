//! Open files: one image of all kinds, or, before CRIU 3.4, an image a kind.

use std::rc::Rc;

use criu_image::{Desc, Store, StoreExt, desc, pb};
use criu_kind::{FileEntry, Result};

/// All entries. Each has room for every kind, so there never is a second list of them.
pub(crate) fn entries(store: &dyn Store) -> Result<Vec<Rc<pb::FileEntry>>> {
    let Some(mut reader) = store.reader(desc::FILES, ())? else {
        return Ok(separate(store)?.into_iter().map(Rc::new).collect());
    };
    let mut all = Vec::new();
    while let Some(entry) = reader.read::<pb::FileEntry>()? {
        all.push(Rc::new(entry.message));
    }
    Ok(all)
}

/// All entries of the separate images.
fn separate(store: &dyn Store) -> Result<Vec<pb::FileEntry>> {
    let mut all = Vec::new();
    add::<pb::RegFileEntry>(store, desc::REG_FILES, &mut all)?;
    add::<pb::ExtFileEntry>(store, desc::EXT_FILES, &mut all)?;
    add::<pb::PipeEntry>(store, desc::PIPES, &mut all)?;
    add::<pb::FifoEntry>(store, desc::FIFO, &mut all)?;
    add::<pb::UnixSkEntry>(store, desc::UNIXSK, &mut all)?;
    add::<pb::InetSkEntry>(store, desc::INETSK, &mut all)?;
    add::<pb::PacketSockEntry>(store, desc::PACKETSK, &mut all)?;
    add::<pb::NetlinkSkEntry>(store, desc::NETLINKSK, &mut all)?;
    add::<pb::EventfdFileEntry>(store, desc::EVENTFD, &mut all)?;
    add::<pb::EventpollFileEntry>(store, desc::EVENTPOLL, &mut all)?;
    add::<pb::SignalfdEntry>(store, desc::SIGNALFD, &mut all)?;
    add::<pb::InotifyFileEntry>(store, desc::INOTIFY, &mut all)?;
    add::<pb::FanotifyFileEntry>(store, desc::FANOTIFY, &mut all)?;
    add::<pb::TtyFileEntry>(store, desc::TTY, &mut all)?;
    add::<pb::TunfileEntry>(store, desc::TUNFILE, &mut all)?;
    add::<pb::NsFileEntry>(store, desc::NS_FILES, &mut all)?;
    add::<pb::TimerfdEntry>(store, desc::TIMERFD, &mut all)?;
    for target in store
        .entries::<pb::EventpollTfdEntry>(desc::EVENTPOLL_TFD, ())?
        .unwrap_or_default()
    {
        let set = all
            .iter_mut()
            .filter_map(|file| file.epfd.as_mut())
            .find(|set| set.id == target.id);
        if let Some(set) = set {
            set.tfd.push(target.message);
        }
    }
    Ok(all)
}

fn add<E: FileEntry>(
    store: &dyn Store,
    desc: &'static Desc,
    all: &mut Vec<pb::FileEntry>,
) -> Result<()> {
    let entries = store.entries::<E>(desc, ())?.unwrap_or_default();
    all.extend(entries.into_iter().map(|entry| entry.message.into_file()));
    Ok(())
}
