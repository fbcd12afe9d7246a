//! Extended attributes of a file that goes into the images.

use criu_image::pb;
use criu_kind::{Error, OpenFile, Result};
use criu_tracee::{Local, Program, Site, Sysno};
use nix::errno::Errno;

use crate::ghost::copy_path;

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of `include/uapi/linux/limits.h`.
const MAX: usize = 64 << 10;

/// All attributes of a file, in the order the file system lists them.
pub(crate) fn read(file: &OpenFile) -> Result<Vec<pb::XattrEntry>> {
    let path = copy_path(file);
    let Some(names) = ask(|program, room| {
        let path = program.cstr(&path);
        program.call(Sysno::listxattr, [path.into(), room.into(), MAX.into()])
    })?
    else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let value = ask(|program, room| {
            let path = program.cstr(&path);
            let name = program.cstr(name);
            program.call(
                Sysno::getxattr,
                [path.into(), name.into(), room.into(), MAX.into()],
            )
        })?;
        if let Some(value) = value {
            all.push(pb::XattrEntry {
                name: name.to_vec(),
                value,
            });
        }
    }
    Ok(all)
}

/// What one call puts into 64 KiB; `None` if there is no such thing here.
fn ask(
    call: impl FnOnce(&mut Program, criu_tracee::Blob) -> criu_tracee::Ret,
) -> Result<Option<Vec<u8>>> {
    let mut program = Program::new();
    let room = program.room(MAX);
    let length = call(&mut program, room);
    match Local.run(&program) {
        Ok(outcome) => {
            let length = usize::try_from(outcome.value(length)).unwrap_or(0);
            Ok(outcome.bytes(room).get(..length).map(<[u8]>::to_vec))
        }
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENOTSUP | Errno::ENODATA | Errno::EPERM)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::from(error)),
    }
}

/// Gives a new file its attributes. Those that this file system or this kernel does not have are left out.
pub(crate) fn write(path: &str, xattrs: &[pb::XattrEntry], program: &mut Program) {
    for xattr in xattrs {
        let path = program.cstr(path);
        let name = program.cstr(&xattr.name);
        let value = program.bytes(xattr.value.clone());
        let size = xattr.value.len();
        program.call(
            Sysno::setxattr,
            [
                path.into(),
                name.into(),
                value.into(),
                size.into(),
                0.into(),
            ],
        );
        program.tolerate();
    }
}
