//! Ids in images: numbers that name an object within one dump, each its own type.
//!
//! An id says nothing outside its dump. Raw integers stop here: a parser wraps, a writer unwraps.
use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($raw:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($raw);

        impl $name {
            /// Wraps the number an image has.
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The number to write in an image.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl From<$raw> for $name {
            fn from(raw: $raw) -> Self {
                Self(raw)
            }
        }

        impl From<$name> for $raw {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl From<$name> for crate::ImageId {
            fn from(id: $name) -> Self {
                Self::Number(id.0.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// An open file: `file_entry.id`, referred to by descriptors, mappings, cwd and exe.
    FileId(u32);
    /// A descriptor table, `files_id`: the N of `fdinfo-N.img`.
    FdTableId(u32);
    /// An address space, `vm_id`.
    VmId(u32);
    /// A set of working directory, root and umask, `fs_id`.
    FsId(u32);
    /// A table of signal actions, `sighand_id`.
    SighandId(u32);
    /// A namespace of any kind.
    NsId(u32);
    /// A process or thread as the root PID namespace of the tree numbers it: the P of `core-P.img`.
    VPid(u32);
    /// A shared memory object, `shmid`: the N of `pagemap-shmem-N.img`.
    ShmId(u64);
    /// A pages image, `pages_id`: the N of `pages-N.img`.
    PagesId(u32);
    /// A pipe or FIFO, `pipe_id`, shared by all its ends.
    PipeId(u32);
}

impl TryFrom<i32> for VPid {
    type Error = std::num::TryFromIntError;

    /// From a `pid_t`, which no process has negative.
    fn try_from(pid: i32) -> Result<Self, Self::Error> {
        u32::try_from(pid).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_number() {
        assert_eq!(u32::from(FileId::new(7)), 7);
        assert_eq!(ShmId::from(1 << 40).to_string(), "1099511627776");
        assert!(VPid::try_from(-1).is_err());
        assert_eq!(VPid::try_from(42).unwrap().get(), 42);
    }
}
