//! Names of BPF objects: files in a BPF file system.
//!
//! Which names an object has is told nowhere, so all such files are opened and asked.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use criu_kind::{Error, RestoreCx, Result};
use criu_proc::{ProcDir, mountinfo};
use criu_tracee::{Local, Name, Program, Site};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::call::{self, Attributes, Command};

/// `BPF_F_RDONLY`: to look at it is enough.
const RDONLY: u32 = 1 << 3;
/// More names than anybody keeps.
const MOST: usize = 100_000;

/// What sort of object, as its descriptor is called: `bpf-map`.
pub(crate) type Sort = String;

/// Names by sort and id.
#[derive(Debug, Default)]
pub(crate) struct Pins(HashMap<(Sort, u32), Vec<Vec<u8>>>);

impl Pins {
    /// Finds all names in all BPF file systems that are mounted here.
    pub(crate) fn find() -> Result<Self> {
        let me = ProcDir::open(Pid::this())?;
        let mut pins = Self::default();
        let mut seen = 0;
        for mount in mountinfo(&me.read("mountinfo")?)? {
            if mount.fstype == b"bpf" {
                let root = Path::new(std::ffi::OsStr::from_bytes(&mount.mountpoint)).to_owned();
                pins.walk(&me, &root, &mut seen);
            }
        }
        Ok(pins)
    }

    fn walk(&mut self, me: &ProcDir, directory: &Path, seen: &mut usize) {
        // What may not be read is nobody's of ours.
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            *seen += 1;
            if *seen > MOST {
                return;
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.walk(me, &path, seen),
                Ok(kind) if kind.is_file() => {
                    let path = path.as_os_str().as_bytes();
                    let Ok(fd) =
                        open(&mut Local, path, RDONLY).or_else(|_| open(&mut Local, path, 0))
                    else {
                        continue;
                    };
                    if let Some(key) = identity(me, fd) {
                        self.0.entry(key).or_default().push(path.to_vec());
                    }
                    if let Err(error) = call::close(&mut Local, fd) {
                        tracing::debug!(%error, "a descriptor stays open");
                    }
                }
                _ => {}
            }
        }
    }

    /// The names of an object.
    pub(crate) fn of(&self, sort: &str, id: u32) -> Vec<Vec<u8>> {
        self.0
            .get(&(sort.to_owned(), id))
            .cloned()
            .unwrap_or_default()
    }
}

/// What an open object is.
fn identity(me: &ProcDir, fd: i32) -> Option<(Sort, u32)> {
    let link = me.readlink(&format!("fd/{fd}")).ok()?;
    let sort = link
        .to_str()?
        .strip_prefix("anon_inode:")?
        .trim_matches(['[', ']'])
        .to_owned();
    let info = me.fdinfo(fd).ok()?;
    let id = ["map_id", "prog_id", "link_id"];
    // A link shows its program too, behind its own id.
    let id = match sort.as_str() {
        "bpf-map" => id[0],
        "bpf-prog" => id[1],
        _ => id[2],
    };
    Some((sort, info.dec(id).ok()?))
}

/// Opens an object by its name.
pub(crate) fn open(site: &mut dyn Site, path: &[u8], flags: u32) -> Result<i32, Errno> {
    let mut program = Program::new();
    let path = program.cstr(path);
    let attributes = Attributes::new(16).pointer(0, path).word(12, flags);
    attributes.make(site, program, Command::ObjGet)
}

/// Gives an object a name.
pub(crate) fn pin(cx: &mut dyn RestoreCx, fd: i32, path: &[u8]) -> Result<()> {
    let mut program = Program::new();
    let name = program.cstr(path);
    let attributes = Attributes::new(16).pointer(0, name).fd(8, fd);
    attributes.call(&mut program, Command::ObjPin);
    match cx.make_name(&Name::path(path), &program) {
        Ok(()) => Ok(()),
        Err(error) => Err(Error::unsupported(
            format!(
                "a BPF object cannot be pinned at {} again ({error})",
                String::from_utf8_lossy(path)
            ),
            "mount a BPF file system there, with the directories it had",
        )),
    }
}
