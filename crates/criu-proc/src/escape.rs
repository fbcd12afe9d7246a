//! The kernel's escapes, undone.

use std::borrow::Cow;

use crate::text::unsigned;

/// Undoes `\ooo` wherever it stands.
///
/// Exact only where the kernel escapes the backslash itself, as mountinfo does:
/// `seq_escape`, `mangle_path` in `fs/seq_file.c`.
pub fn octal(text: &[u8]) -> Vec<u8> {
    let mut undone = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| unsigned(digits, 8));
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                undone.push(byte);
                rest = &after[3..];
            }
            None => {
                undone.push(first);
                rest = after;
            }
        }
    }
    undone
}

/// Undoes `\012` and nothing else, and tells whether there was any.
///
/// `/proc/PID/maps` escapes the newline but not the backslash (`seq_path(m, &file->f_path, "\n")` in
/// `fs/proc/task_mmu.c`), so a file whose name really has the four characters `\012` looks the same.
pub(crate) fn newline(text: &[u8]) -> (Cow<'_, [u8]>, bool) {
    const ESCAPE: &[u8] = b"\\012";
    // Nearly no name has a backslash, and looking for one byte is the faster question.
    if !text.contains(&b'\\') || !text.windows(ESCAPE.len()).any(|window| window == ESCAPE) {
        return (Cow::Borrowed(text), false);
    }
    let mut undone = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(ESCAPE) {
            undone.push(b'\n');
            rest = after;
        } else {
            undone.push(first);
            rest = after;
        }
    }
    (Cow::Owned(undone), true)
}

/// Undoes `\n` and `\\` of the `Name:` line of status (`proc_task_name` in `fs/proc/array.c`).
pub(crate) fn comm(text: &[u8]) -> Vec<u8> {
    let mut undone = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => undone.push(b'\n'),
                Some(b'\\') | None => undone.push(b'\\'),
                Some(other) => undone.extend([b'\\', other]),
            },
            other => undone.push(other),
        }
    }
    undone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_is_exact_and_lets_strangers_pass() {
        assert_eq!(octal(b"/m\\040t\\012\\134#"), b"/m t\n\\#");
        assert_eq!(octal(b"\\0"), b"\\0");
        assert_eq!(octal(b"\\777"), b"\\777"); // Not a byte.
        assert_eq!(octal(b"\\089"), b"\\089");
    }

    #[test]
    fn maps_escape_only_newlines() {
        assert_eq!(newline(b"/a\\040b").0, b"/a\\040b".as_slice());
        assert_eq!(
            newline(b"/a\\012b"),
            (Cow::Borrowed(b"/a\nb".as_slice()), true)
        );
    }

    #[test]
    fn comm_of_status() {
        assert_eq!(comm(b"a) R (\\n\\\\ \xff"), b"a) R (\n\\ \xff");
    }
}
