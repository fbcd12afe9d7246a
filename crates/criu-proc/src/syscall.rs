//! What a task is doing in the kernel: `/proc/PID/syscall` and `/proc/PID/wchan`, for messages to people.

use crate::ParseError;
use crate::text::Line;

/// `/proc/PID/syscall`, proc_pid_syscall(5). `proc_pid_syscall` in `fs/proc/base.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocked {
    /// `running`: not blocked, so nothing to tell.
    Running,
    /// -1: blocked, but not in a system call.
    Elsewhere {
        /// The stack pointer.
        sp: u64,
        /// The instruction pointer.
        pc: u64,
    },
    /// Blocked in a system call.
    Call {
        /// Its number.
        number: u64,
        /// Its arguments, used or not.
        args: [u64; 6],
        /// The stack pointer.
        sp: u64,
        /// The instruction pointer.
        pc: u64,
    },
}

/// Reads `/proc/PID/syscall`.
pub fn syscall(syscall: &[u8]) -> Result<Blocked, ParseError> {
    let mut line = Line::new("syscall", 1, syscall);
    let before = line.clone();
    let number = line.word();
    let mut hex = || {
        line.skip_blanks();
        line.tag("0x")?;
        line.hex::<u64>("a hexadecimal number")
    };
    let blocked = match number {
        b"running" => Blocked::Running,
        b"-1" => Blocked::Elsewhere {
            sp: hex()?,
            pc: hex()?,
        },
        digits => Blocked::Call {
            number: crate::text::unsigned(digits, 10)
                .ok_or_else(|| before.error("a system call's number"))?,
            args: [hex()?, hex()?, hex()?, hex()?, hex()?, hex()?],
            sp: hex()?,
            pc: hex()?,
        },
    };
    line.end()?;
    Ok(blocked)
}

/// The kernel function a task waits in, from `/proc/PID/wchan`: `None` (printed as `0`) if it does not wait, or if the
/// reader may not know. proc_pid_wchan(5).
pub fn wchan(wchan: &[u8]) -> Option<&[u8]> {
    let name = wchan.trim_ascii();
    (!name.is_empty() && name != b"0").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls() {
        let text = b"0 0x9 0x565311404a80 0x2000 0x1000 0x0 0x0 0x7fff724e0378 0x7f26f31162ad\n";
        let Ok(Blocked::Call {
            number: 0,
            args,
            pc: 0x7f26_f311_62ad,
            ..
        }) = syscall(text)
        else {
            panic!("a real file");
        };
        assert_eq!(args, [9, 0x5653_1140_4a80, 0x2000, 0x1000, 0, 0]);
        assert_eq!(syscall(b"running\n"), Ok(Blocked::Running));
        assert_eq!(
            syscall(b"-1 0x7ffe 0x40\n"),
            Ok(Blocked::Elsewhere {
                sp: 0x7ffe,
                pc: 0x40
            })
        );
        let error = syscall(b"35 0x1 2").expect_err("no 0x");
        assert_eq!(error.to_string(), "syscall:1: expected 0x, found \"2\"");
    }

    #[test]
    fn channels() {
        assert_eq!(wchan(b"0"), None);
        assert_eq!(
            wchan(b"hrtimer_nanosleep"),
            Some(b"hrtimer_nanosleep".as_slice())
        );
    }
}
