//! Files with no name left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use zdtm::{Case, Result, check_eq, fill, verify};

pub(crate) const CASES: &[Case] = &[Case::new("ghost", content)];

fn content() -> Result<()> {
    let path = zdtm::dir().join("gone");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
    let mut bytes = vec![0; 100_003];
    fill(&mut bytes, 11);
    file.write_all(&bytes)?;
    file.seek(SeekFrom::Start(77))?;
    file.set_permissions(Permissions::from_mode(0o4711))?;
    fs::remove_file(&path)?;
    zdtm::checkpoint()?;
    check_eq!(file.stream_position()?, 77);
    let meta = file.metadata()?;
    check_eq!(meta.nlink(), 0);
    check_eq!(meta.mode(), libc::S_IFREG | 0o4711);
    check_eq!(meta.len(), 100_003);
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut found)?;
    verify(&found, 11)?;
    // The name is free again.
    File::create_new(&path)?;
    Ok(())
}
