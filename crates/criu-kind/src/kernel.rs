//! Which kernel something needs.

/// A kernel release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u16, pub u16, pub u16);

impl Kernel {
    /// `Kernel::new(2, 6, 22)`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self(major, minor, patch)
    }
}
