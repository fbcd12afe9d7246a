//! Lists the open files of a dump: `cargo run -p criu-files --example files DIRECTORY`.

use criu_image::{Desc, Directory, Store, StoreExt, desc, pb};
use prost::{Message, Name};

fn main() -> criu_image::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let store = Directory::open(directory)?;
    show::<pb::FileEntry>(&store, desc::FILES)?;
    for name in store.names()? {
        if let Some((kind, id)) = Desc::of_file(&name)
            && kind.stem == desc::FDINFO.stem
        {
            for entry in store
                .entries::<pb::FdinfoEntry>(desc::FDINFO, id)?
                .unwrap_or_default()
            {
                say(&name, &format!("{:?}", entry.message));
            }
        }
    }
    show::<pb::RemapFilePathEntry>(&store, desc::REMAP_FPATH)?;
    show::<pb::PipeDataEntry>(&store, desc::PIPES_DATA)?;
    show::<pb::PipeDataEntry>(&store, desc::FIFO_DATA)?;
    show::<pb::FileLockEntry>(&store, desc::FILE_LOCKS)?;
    show::<pb::FilesExtEntry>(&store, desc::FILES_EXT)
}

fn show<M: Message + Default + Name + std::fmt::Debug>(
    store: &dyn Store,
    kind: &'static Desc,
) -> criu_image::Result<()> {
    for entry in store.entries::<M>(kind, ())?.unwrap_or_default() {
        say(&kind.file_name(()), &format!("{:?}", entry.message));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "a command line tool")]
fn say(image: &str, entry: &str) {
    let entry = entry.replace(": None", "").replace("Some(", "(");
    println!("{image}: {entry}");
}
