//! A set of signals as status prints it.

/// A signal mask: bit `n - 1` is signal `n`.
///
/// 128 bits, because MIPS has 128 signals; elsewhere the upper half is empty. `render_sigset_t` in
/// `fs/proc/array.c` prints `_NSIG / 4` digits, highest signal first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SignalMask(pub u128);

impl SignalMask {
    /// Whether signal number `signal` is in the set.
    pub fn contains(self, signal: u32) -> bool {
        signal
            .checked_sub(1)
            .and_then(|bit| self.0.checked_shr(bit))
            .is_some_and(|bits| bits & 1 == 1)
    }

    /// The set as the 64-bit mask of most architectures, or `None` if it holds a signal above 64.
    pub fn to_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }

    /// From the kernel's digits, 16 or 32 of them; signalfd's fdinfo has a mask too.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        if digits.is_empty() || digits.len() > 32 {
            return None;
        }
        let mask = digits.iter().try_fold(0_u128, |mask, &digit| {
            Some(mask << 4 | u128::from(char::from(digit).to_digit(16)?))
        })?;
        Some(Self(mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mips_has_128_signals() {
        let mask = SignalMask::parse(b"80000000000000000000000000000002").expect("32 digits");
        assert!(mask.contains(2) && mask.contains(128) && !mask.contains(1));
        assert!(!mask.contains(0) && !mask.contains(129));
        assert_eq!(mask.to_u64(), None);
        assert_eq!(
            SignalMask::parse(b"800000000000000000000000000000020"),
            None
        );
    }
}
