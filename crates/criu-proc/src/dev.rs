//! A device number, as the kernel prints it: major and minor apart.

use std::fmt;

/// `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dev {
    /// The driver: 12 bits in today's kernels.
    pub major: u32,
    /// The instance: 20 bits in today's kernels.
    pub minor: u32,
}

impl Dev {
    /// From `st_dev` or `st_rdev` of stat(2): see makedev(3) for the scattered bits.
    pub fn from_st_dev(st_dev: u64) -> Self {
        let bits = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX);
        Self {
            major: bits((st_dev >> 8) & 0xfff | (st_dev >> 32) & 0xffff_f000),
            minor: bits(st_dev & 0xff | (st_dev >> 12) & 0xffff_ff00),
        }
    }

    /// The kernel's own packing, `MKDEV` of `include/linux/kdev_t.h`: what fdinfo prints as `sdev:`.
    pub fn from_kernel(dev: u32) -> Self {
        Self {
            major: dev >> 20,
            minor: dev & 0xf_ffff,
        }
    }

    /// The packing the kernel uses inside, or `None` if the number does not fit its 12 and 20 bits.
    pub fn to_kernel(self) -> Option<u32> {
        (self.major < 1 << 12 && self.minor < 1 << 20).then_some(self.major << 20 | self.minor)
    }
}

impl fmt::Display for Dev {
    /// Like maps does: `fe:00`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packings() {
        let dev = Dev {
            major: 254,
            minor: 0x12345,
        };
        assert_eq!(Dev::from_st_dev(0x1230_fe45), dev); // st_dev of 254:74565.
        assert_eq!(Dev::from_st_dev(nix::sys::stat::makedev(254, 0x12345)), dev);
        assert_eq!(dev.to_kernel().map(Dev::from_kernel), Some(dev));
        assert_eq!(
            Dev {
                major: 4096,
                minor: 0
            }
            .to_kernel(),
            None
        );
        assert_eq!(
            Dev {
                major: 0xfe,
                minor: 0
            }
            .to_string(),
            "fe:00"
        );
    }
}
