//! A cursor over one line that knows where it is, so that every refusal names its place.

use std::borrow::Cow;

use nix::unistd::Pid;

use crate::ParseError;

/// What is left to read of one line.
#[derive(Debug, Clone)]
pub(crate) struct Line<'a> {
    file: &'static str,
    number: u32,
    rest: &'a [u8],
}

/// The lines of a file, without their newlines; text after the last newline counts as a line.
pub(crate) fn lines<'a>(file: &'static str, text: &'a [u8]) -> Lines<'a> {
    lines_behind(file, 0, text)
}

/// The same for the rest of a file, of which so many lines are known.
pub(crate) fn lines_behind<'a>(file: &'static str, number: u32, text: &'a [u8]) -> Lines<'a> {
    Lines { file, number, text }
}

/// See [`lines`].
#[derive(Debug, Clone)]
pub(crate) struct Lines<'a> {
    file: &'static str,
    number: u32,
    text: &'a [u8],
}

impl Lines<'_> {
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.text.is_empty() {
            return None;
        }
        let (rest, text) = split_at_byte(self.text, b'\n').unwrap_or((self.text, &[]));
        self.text = text;
        self.number = self.number.saturating_add(1);
        Some(Line {
            file: self.file,
            number: self.number,
            rest,
        })
    }
}

impl<'a> Line<'a> {
    pub(crate) fn new(file: &'static str, number: u32, rest: &'a [u8]) -> Self {
        Self { file, number, rest }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn error(&self, expected: impl Into<Cow<'static, str>>) -> ParseError {
        ParseError::new(self.file, self.number, expected, self.rest)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Up to the next `byte`, which is consumed too.
    pub(crate) fn until(
        &mut self,
        byte: u8,
        expected: &'static str,
    ) -> Result<&'a [u8], ParseError> {
        let (before, after) = split_at_byte(self.rest, byte).ok_or_else(|| self.error(expected))?;
        self.rest = after;
        Ok(before)
    }

    /// The next run of bytes that are not blank; empty only at the end of the line.
    pub(crate) fn word(&mut self) -> &'a [u8] {
        self.skip_blanks();
        let end = self
            .rest
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Consumes `literal` if the line goes on with it.
    pub(crate) fn take(&mut self, literal: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(literal);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    pub(crate) fn tag(&mut self, literal: &'static str) -> Result<(), ParseError> {
        if self.take(literal.as_bytes()) {
            Ok(())
        } else {
            Err(self.error(literal))
        }
    }

    /// Nothing but blanks may be left.
    pub(crate) fn end(mut self) -> Result<(), ParseError> {
        self.skip_blanks();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error("the end of the line"))
        }
    }

    fn number_word<T>(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, ParseError> {
        self.skip_blanks();
        let before = self.clone();
        parse(self.word()).ok_or_else(|| before.error(expected))
    }

    pub(crate) fn dec<T: TryFrom<u64>>(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
    ) -> Result<T, ParseError> {
        self.number_word(expected, |word| T::try_from(unsigned(word, 10)?).ok())
    }

    pub(crate) fn int<T: TryFrom<i64>>(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
    ) -> Result<T, ParseError> {
        self.number_word(expected, |word| T::try_from(signed(word)?).ok())
    }

    pub(crate) fn hex<T: TryFrom<u64>>(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
    ) -> Result<T, ParseError> {
        self.number_word(expected, |word| T::try_from(unsigned(word, 16)?).ok())
    }

    pub(crate) fn oct<T: TryFrom<u64>>(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
    ) -> Result<T, ParseError> {
        self.number_word(expected, |word| T::try_from(unsigned(word, 8)?).ok())
    }

    pub(crate) fn pid(
        &mut self,
        expected: impl Into<Cow<'static, str>>,
    ) -> Result<Pid, ParseError> {
        self.int(expected).map(Pid::from_raw)
    }

    /// All the numbers that are left.
    pub(crate) fn decs<T: TryFrom<u64>>(
        &mut self,
        expected: &'static str,
    ) -> Result<Vec<T>, ParseError> {
        let mut all = Vec::new();
        self.skip_blanks();
        while !self.rest.is_empty() {
            all.push(self.dec(expected)?);
            self.skip_blanks();
        }
        Ok(all)
    }

    /// A size like `12 kB`, in bytes.
    pub(crate) fn kilobytes(mut self) -> Result<u64, ParseError> {
        let before = self.clone();
        let size: u64 = self.dec("a size in kB")?;
        self.skip_blanks();
        self.tag("kB")?;
        self.end()?;
        size.checked_mul(1024)
            .ok_or_else(|| before.error("a size below 2^64 bytes"))
    }
}

/// Splits around the first `byte`.
pub(crate) fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Digits and nothing else; `None` on none, on strangers and on overflow.
pub(crate) fn unsigned(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(radix)?;
        value
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(digit))
    })
}

/// Decimal digits after an optional minus.
pub(crate) fn signed(word: &[u8]) -> Option<i64> {
    match word.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(unsigned(digits, 10)?),
        None => i64::try_from(unsigned(word, 10)?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact() {
        assert_eq!(unsigned(b"18446744073709551615", 10), Some(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616", 10), None);
        assert_eq!(unsigned(b"", 10), None);
        assert_eq!(unsigned(b"+1", 10), None);
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"9223372036854775808"), None);
        assert_eq!(signed(b"--1"), None);
    }

    #[test]
    fn a_refusal_names_its_place() {
        let mut line = lines("limits", b"x\nlong 12q").nth(1).expect("two lines");
        assert_eq!(line.word(), b"long");
        let error = line.dec::<u32>("a number").expect_err("12q is none");
        assert_eq!(
            error.to_string(),
            "limits:2: expected a number, found \"12q\""
        );
    }
}
