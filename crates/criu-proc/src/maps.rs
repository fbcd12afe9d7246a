//! The mappings of a process: `/proc/PID/maps`, proc_pid_maps(5).

use crate::escape;
use crate::text::{self, Line, Lines};
use crate::{Dev, MapName, ParseError};

/// The `rwxp` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Perms {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
    /// `s`, not `p`: mapped with `MAP_SHARED`.
    pub shared: bool,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vma<'a> {
    /// The first address.
    pub start: u64,
    /// The first address behind it. The guard gap below a growing stack is not part of a mapping.
    pub end: u64,
    /// Protection and sharing.
    pub perms: Perms,
    /// Where in the file it starts, in bytes; 0 without a file.
    pub offset: u64,
    /// The file's superblock, 0:0 without a file. On btrfs and overlayfs it differs from stat(2)'s.
    pub dev: Dev,
    /// The file's inode number, 0 without a file.
    pub inode: u64,
    /// What it is of.
    pub name: MapName<'a>,
    /// The name held `\012`, here undone. The kernel escapes newlines but not backslashes, so the file's name may
    /// really have those four characters: only `map_files` can tell.
    pub newline: bool,
}

impl Vma<'_> {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// A copy that does not borrow the file's text.
    pub fn into_owned(self) -> Vma<'static> {
        Vma {
            name: self.name.into_owned(),
            ..self
        }
    }
}

/// The mappings in the text of `/proc/PID/maps`, lowest first. Stops after the first error.
///
/// Names borrow the text: nothing is allocated but names with newlines.
#[derive(Debug, Clone)]
pub struct Vmas<'a> {
    lines: Lines<'a>,
}

impl<'a> Vmas<'a> {
    /// From all the bytes of the file.
    pub fn new(maps: &'a [u8]) -> Self {
        Self {
            lines: text::lines("maps", maps),
        }
    }
}

impl<'a> Iterator for Vmas<'a> {
    type Item = Result<Vma<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let vma = vma(self.lines.next()?);
        if vma.is_err() {
            self.lines = text::lines("maps", b"");
        }
        Some(vma)
    }
}

pub(crate) fn vma(mut line: Line<'_>) -> Result<Vma<'_>, ParseError> {
    const RANGE: &str = "an address range like 7f00-8f00";
    let before = line.clone();
    let hex = |digits| text::unsigned(digits, 16).ok_or_else(|| before.error(RANGE));
    let start = hex(line.until(b'-', RANGE)?)?;
    let end = hex(line.until(b' ', RANGE)?)?;
    if end <= start {
        return Err(before.error("a range that is not empty"));
    }
    let perms = perms(&mut line)?;
    let offset = line.hex("the offset in the file")?;
    let dev = dev(&mut line)?;
    let inode = line.dec("an inode number")?;
    line.take(b" ");
    // The column is padded with spaces. A name that starts with one does not exist: paths start with a slash, the
    // others with a letter or a bracket.
    let padded = line.rest();
    let pad = padded
        .iter()
        .position(|&byte| byte != b' ')
        .unwrap_or(padded.len());
    let (name, newline) = escape::newline(&padded[pad..]);
    Ok(Vma {
        start,
        end,
        perms,
        offset,
        dev,
        inode,
        name: MapName::parse(name),
        newline,
    })
}

fn perms(line: &mut Line<'_>) -> Result<Perms, ParseError> {
    let before = line.clone();
    let flag = |byte: u8, set: u8, unset: u8| match byte {
        b if b == set => Ok(true),
        b if b == unset => Ok(false),
        _ => Err(before.error("permissions like rwxp")),
    };
    match line.word() {
        &[r, w, x, s] => Ok(Perms {
            read: flag(r, b'r', b'-')?,
            write: flag(w, b'w', b'-')?,
            exec: flag(x, b'x', b'-')?,
            shared: flag(s, b's', b'p')?,
        }),
        _ => Err(before.error("permissions like rwxp")),
    }
}

/// A hexadecimal `major:minor` and a blank.
fn dev(line: &mut Line<'_>) -> Result<Dev, ParseError> {
    let before = line.clone();
    let number = |digits| text::unsigned(digits, 16).and_then(|number| u32::try_from(number).ok());
    text::split_at_byte(line.word(), b':')
        .and_then(|(major, minor)| {
            Some(Dev {
                major: number(major)?,
                minor: number(minor)?,
            })
        })
        .ok_or_else(|| before.error("a device like fe:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURE: &[u8] = include_bytes!("../fixtures/maps");

    #[test]
    fn a_real_process() {
        let vmas: Vec<_> = Vmas::new(FIXTURE)
            .collect::<Result<_, _>>()
            .expect("a real file");
        assert_eq!(vmas.len(), 13);
        let named = |wanted: fn(&MapName<'_>) -> bool| {
            vmas.iter()
                .find(|vma| wanted(&vma.name))
                .expect("it is there")
        };
        let text = &vmas[0];
        assert_eq!(
            (text.start, text.end, text.size()),
            (0x5653_0dbe_c000, 0x5653_0dbe_d000, 0x1000)
        );
        assert_eq!(
            text.perms,
            Perms {
                read: true,
                write: false,
                exec: true,
                shared: false
            }
        );
        assert_eq!(
            (text.offset, text.dev.to_string(), text.inode),
            (0x1000, "fe:00".to_owned(), 18504)
        );
        assert!(named(|name| *name == MapName::SysV(0x12345)).perms.shared);
        assert_eq!(named(|name| *name == MapName::Aio).inode, 6756);
        assert!(named(|name| *name == MapName::Memfd(b"me\nm x".into())).newline);
        let ambiguous = named(|name| {
            *name
                == MapName::Path {
                    path: b"/tmp/a b\n\nc".into(),
                    deleted: true,
                }
        });
        assert!(ambiguous.newline); // The file was really called "a b\n\\012c".
        assert_eq!(vmas[12].name, MapName::Vsyscall);
        assert_eq!(vmas[12].end, 0xffff_ffff_ff60_1000);
        assert_eq!(vmas[12].clone().into_owned(), vmas[12]);
    }

    #[test]
    fn names_with_spaces_and_without_text() {
        let vma = |text: &'static str| {
            Vmas::new(text.as_bytes())
                .next()
                .expect("a line")
                .expect("a mapping")
        };
        assert_eq!(
            vma("1000-2000 rw-p 00000000 00:00 0 \n").name,
            MapName::Empty
        );
        assert_eq!(vma("1000-2000 rw-p 00000000 00:00 0").name, MapName::Empty);
        let path = MapName::Path {
            path: b"/a b ".into(),
            deleted: false,
        };
        assert_eq!(
            vma("1000-2000 r--s 00001000 103:02 7      /a b \n").name,
            path
        );
    }

    #[test]
    fn refusals() {
        let error = |text: &str| {
            Vmas::new(text.as_bytes())
                .next()
                .expect("a line")
                .expect_err("malformed")
                .to_string()
        };
        assert_eq!(
            error("2000-1000 rw-p"),
            "maps:1: expected a range that is not empty, found \"2000-1000 rw-p\""
        );
        assert_eq!(
            error("1-2 rwxq 0"),
            "maps:1: expected permissions like rwxp, found \"rwxq 0\""
        );
        assert_eq!(
            error("1-2 rwxp 0 1 2"),
            "maps:1: expected a device like fe:00, found \" 1 2\""
        );
        let mut vmas = Vmas::new(b"\n1-2 rwxp 0 0:0 0\n");
        assert!(vmas.next().expect("a line").is_err() && vmas.next().is_none());
    }
}
