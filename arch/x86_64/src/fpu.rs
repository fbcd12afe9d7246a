//! Extended state: the XSAVE area in its standard format, as `NT_X86_XSTATE` moves it.
//!
//! Which components there are and where each lies is the processor's choice (AMD packs what Intel
//! leaves holes for), so offsets come from CPUID leaf 0xD. Intel SDM volume 1, chapter 13.

use core::ops::Range;

/// The components that have a name here: bit and name.
const NAMES: &[(u32, &str)] = &[
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (3, "MPX bounds"),
    (4, "MPX configuration"),
    (5, "AVX-512 masks"),
    (6, "upper halves of ZMM0-15"),
    (7, "ZMM16-31"),
    (8, "processor trace"),
    (9, "protection keys"),
    (10, "PASID"),
    (11, "user shadow stack"),
    (17, "AMX tile configuration"),
    (18, "AMX tile data"),
    (19, "APX registers"),
];

/// The name of a component, for messages.
pub fn component_name(bit: u32) -> String {
    NAMES
        .iter()
        .find(|(known, _)| *known == bit)
        .map_or_else(|| format!("component {bit}"), |(_, name)| (*name).into())
}

/// Bytes of the legacy region: x87 and SSE, as FXSAVE writes them.
pub(crate) const LEGACY: usize = 512;
/// Offset of the component bitmap in the header behind it.
#[cfg(feature = "image")]
pub(crate) const XSTATE_BV: usize = 512;
/// The first byte behind the header.
const EXTENDED: usize = 576;

/// Leaf 1, ecx: the kernel has enabled XSAVE.
const OSXSAVE: u32 = 27;

/// Where components lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XstateLayout {
    size: usize,
    parts: Vec<(u32, Range<usize>)>,
}

impl XstateLayout {
    /// From CPUID: leaf and subleaf give eax, ebx, ecx, edx.
    pub fn from_cpuid(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> Self {
        // Without XSAVE, or with a kernel that does not use it, the legacy region is all there is.
        if cpuid(1, 0)[2] >> OSXSAVE & 1 == 0 {
            let (size, parts) = (LEGACY, Vec::new());
            return Self { size, parts };
        }
        let [low, size, _, high] = cpuid(0xd, 0);
        let features = u64::from(high) << 32 | u64::from(low);
        let size = (size as usize).max(EXTENDED);
        let parts = (2..63)
            .filter(|bit| features >> bit & 1 == 1)
            .map(|bit| (bit, cpuid(0xd, bit)))
            .map(|(bit, [length, offset, ..])| (bit, offset as usize..(offset + length) as usize))
            // One that the kernel has not enabled lies behind the end.
            .filter(|(_, range)| !range.is_empty() && range.end <= size)
            .collect();
        Self { size, parts }
    }

    /// Bytes of the whole area.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether there is more than the legacy region.
    pub(crate) fn is_extended(&self) -> bool {
        self.size > LEGACY
    }

    /// Where a component lies; `None` if this processor has none such.
    pub fn part(&self, bit: u32) -> Option<Range<usize>> {
        self.parts
            .iter()
            .find(|(known, _)| *known == bit)
            .map(|(_, range)| range.clone())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An AMD Zen 5, as seen on the machine this was written on.
    pub(crate) fn amd() -> XstateLayout {
        XstateLayout::from_cpuid(&|leaf, subleaf| match (leaf, subleaf) {
            (1, 0) => [0, 0, 1 << 27, 0],
            (0xd, 0) => [0x2e7, 2440, 0x988, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 5) => [64, 832, 0, 0],
            (0xd, 6) => [512, 896, 0, 0],
            (0xd, 7) => [1024, 1408, 0, 0],
            (0xd, 9) => [8, 2432, 0, 0],
            _ => [0; 4],
        })
    }

    /// An Intel Skylake server.
    pub(crate) fn intel() -> XstateLayout {
        XstateLayout::from_cpuid(&|leaf, subleaf| match (leaf, subleaf) {
            (1, 0) => [0, 0, 1 << 27, 0],
            (0xd, 0) => [0x2ff, 2696, 2696, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 3) => [64, 960, 0, 0],
            (0xd, 4) => [64, 1024, 0, 0],
            (0xd, 5) => [64, 1088, 0, 0],
            (0xd, 6) => [512, 1152, 0, 0],
            (0xd, 7) => [1024, 1664, 0, 0],
            (0xd, 9) => [8, 2688, 0, 0],
            _ => [0; 4],
        })
    }

    #[test]
    fn processors_differ() {
        assert_eq!(amd().part(9), Some(2432..2440));
        assert_eq!(intel().part(9), Some(2688..2696));
        assert_eq!((amd().part(3), amd().size()), (None, 2440));
    }

    #[test]
    fn what_is_not_enabled_is_not_there() {
        let layout = XstateLayout::from_cpuid(&|leaf, subleaf| match (leaf, subleaf) {
            (1, 0) => [0, 0, 1 << 27, 0],
            (0xd, 0) => [7 | 1 << 18, 832, 11008, 0],
            (0xd, 2) => [256, 576, 0, 0],
            (0xd, 18) => [8192, 2816, 0, 0],
            _ => [0; 4],
        });
        assert_eq!((layout.part(18), layout.part(2)), (None, Some(576..832)));
    }

    #[test]
    fn a_processor_without_xsave_has_the_legacy_region() {
        let layout = XstateLayout::from_cpuid(&|_, _| [0; 4]);
        assert_eq!((layout.size(), layout.is_extended()), (512, false));
    }

    #[test]
    fn every_component_has_a_name() {
        assert_eq!(component_name(18), "AMX tile data");
        assert_eq!(component_name(40), "component 40");
    }
}
