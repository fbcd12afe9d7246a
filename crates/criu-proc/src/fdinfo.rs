//! An open file: `/proc/PID/fdinfo/FD`, proc_pid_fdinfo(5).
//!
//! The head is the same for all files; behind it each kind of file has lines of its own, which its kind parses with
//! [`Fdinfo::hex`] and friends, or line by line.

use std::borrow::Cow;

use crate::text::{Line, lines, split_at_byte, unsigned};
use crate::{Lock, MountId, ParseError, SignalMask};

/// What fdinfo says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fdinfo {
    /// The position.
    pub pos: i64,
    /// The flags of open(2), with `O_CLOEXEC` for the descriptor's own flag.
    pub flags: u32,
    /// The mount, as mountinfo numbers them; Linux 3.15.
    pub mount: Option<MountId>,
    /// The inode number; Linux 5.14.
    pub inode: Option<u64>,
    /// Locks this process took through this descriptor; Linux 4.1.
    pub locks: Vec<Lock>,
    /// The lines of the kind, in the kernel's order.
    pub lines: Vec<InfoLine>,
}

impl Fdinfo {
    /// From all the bytes of the file. `seq_show` in `fs/proc/fd.c`.
    pub fn parse(fdinfo: &[u8]) -> Result<Self, ParseError> {
        let (mut pos, mut flags) = (None, None);
        let mut info = Self {
            pos: 0,
            flags: 0,
            mount: None,
            inode: None,
            locks: Vec::new(),
            lines: Vec::new(),
        };
        for line in lines("fdinfo", fdinfo) {
            let (key, value) = split_at_byte(line.rest(), b':').unwrap_or((line.rest(), b""));
            let mut value = Line::new("fdinfo", line.number(), value);
            match key {
                // The head comes once; later lines of these names would be the kind's.
                b"pos" if pos.is_none() => pos = Some(value.int("a position")?),
                b"flags" if flags.is_none() => flags = Some(value.oct("octal flags")?),
                b"mnt_id" if info.mount.is_none() => {
                    info.mount = Some(MountId(value.int("a mount id")?))
                }
                b"ino" if info.inode.is_none() => info.inode = Some(value.dec("an inode number")?),
                b"lock" => {
                    info.locks.push(Lock::parse(value)?);
                    continue;
                }
                _ => {
                    info.lines.push(InfoLine {
                        number: line.number(),
                        text: line.rest().into(),
                    });
                    continue;
                }
            }
            value.end()?;
        }
        info.pos = pos.ok_or_else(|| ParseError::missing("fdinfo", "a line pos"))?;
        info.flags = flags.ok_or_else(|| ParseError::missing("fdinfo", "a line flags"))?;
        Ok(info)
    }

    /// The lines that start with `key` and a colon or a blank: `tfd`, `inotify`.
    pub fn lines_of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a InfoLine> {
        self.lines.iter().filter(move |line| {
            let after = line.text.strip_prefix(key.as_bytes());
            after.is_some_and(|after| matches!(after.first(), Some(b':' | b' ' | b'\t')))
        })
    }

    /// The text after `key:` at the start of a line, without the blanks around it.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.line(key)
            .and_then(|line| split_at_byte(&line.text, b':'))
            .map(|(_, value)| value.trim_ascii())
    }

    /// The decimal number after `key:` at the start of a line.
    pub fn dec<T: TryFrom<u64>>(&self, key: &'static str) -> Result<T, ParseError> {
        self.required(key)?.dec(key)
    }

    /// The same with a sign.
    pub fn int<T: TryFrom<i64>>(&self, key: &'static str) -> Result<T, ParseError> {
        self.required(key)?.int(key)
    }

    /// The same in hexadecimal, with or without `0x`.
    pub fn hex<T: TryFrom<u64>>(&self, key: &'static str) -> Result<T, ParseError> {
        self.required(key)?.hex(key)
    }

    /// The same in octal.
    pub fn oct<T: TryFrom<u64>>(&self, key: &'static str) -> Result<T, ParseError> {
        self.required(key)?.oct(key)
    }

    /// A set of signals, as signalfd has.
    pub fn signals(&self, key: &'static str) -> Result<SignalMask, ParseError> {
        let line = self.required(key)?;
        let digits = line.field(key).and_then(SignalMask::parse);
        digits.ok_or_else(|| line.error("a set of signals"))
    }

    fn line(&self, key: &str) -> Option<&InfoLine> {
        self.lines.iter().find(|line| {
            let after = line.text.strip_prefix(key.as_bytes());
            after.is_some_and(|after| after.first() == Some(&b':'))
        })
    }

    fn required(&self, key: &'static str) -> Result<&InfoLine, ParseError> {
        self.line(key)
            .ok_or_else(|| ParseError::missing("fdinfo", format!("a line {key}")))
    }
}

/// A line of one kind of file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InfoLine {
    /// Its number in the file, from 1.
    pub number: u32,
    /// All of it.
    pub text: Box<[u8]>,
}

impl InfoLine {
    /// The word after `name:`, wherever in the line: epoll prints `tfd:        7 events:       19`.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        let mut from = 0;
        while let Some(rest) = self.text.get(from..).filter(|rest| rest.len() > name.len()) {
            let starts_word = from == 0 || self.text[from - 1].is_ascii_whitespace();
            if starts_word && rest.starts_with(name) && rest[name.len()] == b':' {
                let value = rest[name.len() + 1..].trim_ascii_start();
                let end = value
                    .iter()
                    .position(u8::is_ascii_whitespace)
                    .unwrap_or(value.len());
                return Some(&value[..end]);
            }
            from += 1;
        }
        None
    }

    /// The field as a decimal number.
    pub fn dec<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, ParseError> {
        self.number(name, "decimal", |word| {
            T::try_from(unsigned(word, 10)?).ok()
        })
    }

    /// The field as a decimal number with a sign.
    pub fn int<T: TryFrom<i64>>(&self, name: &'static str) -> Result<T, ParseError> {
        self.number(name, "decimal", |word| {
            T::try_from(crate::text::signed(word)?).ok()
        })
    }

    /// The field as a hexadecimal number, with or without `0x`.
    pub fn hex<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, ParseError> {
        self.number(name, "hexadecimal", |word| {
            T::try_from(unsigned(word.strip_prefix(b"0x").unwrap_or(word), 16)?).ok()
        })
    }

    /// The field as an octal number.
    pub fn oct<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, ParseError> {
        self.number(name, "octal", |word| T::try_from(unsigned(word, 8)?).ok())
    }

    /// A refusal of this line, for what its kind reads by hand.
    pub fn error(&self, expected: impl Into<Cow<'static, str>>) -> ParseError {
        ParseError::new("fdinfo", self.number, expected, &self.text)
    }

    fn number<T>(
        &self,
        name: &str,
        radix: &str,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, ParseError> {
        self.field(name)
            .and_then(parse)
            .ok_or_else(|| self.error(format!("{name}: and a {radix} number that fits")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LockKind;

    #[test]
    fn an_eventfd() {
        let info =
            Fdinfo::parse(include_bytes!("../fixtures/fdinfo.eventfd")).expect("a real file");
        assert_eq!(
            (info.pos, info.flags, info.mount),
            (0, 0o2_000_002, Some(MountId(17)))
        );
        assert_eq!(info.hex::<u64>("eventfd-count"), Ok(77));
        assert_eq!(info.value("eventfd-id"), Some(b"1".as_slice()));
        let error = info.hex::<u64>("eventfd").expect_err("a key is whole");
        assert_eq!(error.to_string(), "fdinfo: expected a line eventfd");
    }

    #[test]
    fn an_epoll() {
        let info = Fdinfo::parse(include_bytes!("../fixtures/fdinfo.epoll")).expect("a real file");
        assert_eq!(info.inode, Some(1039));
        let target = info.lines_of("tfd").next().expect("one target");
        assert_eq!(
            (target.dec("tfd"), target.hex("events"), target.int("pos")),
            (Ok(7_i32), Ok(0x19_u32), Ok(0_i64))
        );
        assert_eq!(
            (target.hex("data"), target.hex("ino")),
            (Ok(7_u64), Ok(0x40f_u64))
        );
        let error = target.dec::<u8>("sdev:").expect_err("a name has no colon");
        assert_eq!(
            (error.line, &*error.expected),
            (5, "sdev:: and a decimal number that fits")
        );
    }

    #[test]
    fn a_locked_file() {
        let info = Fdinfo::parse(include_bytes!("../fixtures/fdinfo.locks")).expect("a real file");
        assert_eq!(
            info.locks.iter().map(|lock| lock.kind).collect::<Vec<_>>(),
            [LockKind::Flock, LockKind::Posix]
        );
        assert!(info.lines.is_empty());
    }

    #[test]
    fn an_inotify() {
        let text =
            b"pos:\t0\nflags:\t00\ninotify wd:1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 \
            fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n";
        let info = Fdinfo::parse(text).expect("well formed");
        let watch = info.lines_of("inotify").next().expect("one watch");
        assert_eq!(
            (watch.dec("wd"), watch.hex("mask")),
            (Ok(1), Ok(0x0800_afce_u32))
        );
        assert_eq!(
            watch.field("f_handle"),
            Some(b"7e9e0000640d1b6d".as_slice())
        );
    }

    #[test]
    fn the_head_is_required() {
        assert_eq!(
            Fdinfo::parse(b"pos:\t0\n").expect_err("no flags").expected,
            "a line flags"
        );
        assert_eq!(
            Fdinfo::parse(b"pos:\tx\n").expect_err("no position").line,
            1
        );
    }
}
