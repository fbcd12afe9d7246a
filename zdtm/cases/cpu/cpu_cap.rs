//! What `--cpu-cap` has written down and compared: the program itself uses nothing of it that a register would show.

use std::arch::x86_64::__cpuid;

use zdtm::{Case, Result, check_eq};

pub(crate) const CASES: &[Case] = &[
    Case::new("cpu-cap-instructions", run)
        .options(&["--cpu-cap=ins"])
        .needs(&["avx2 is missing", "xsave is missing", "aes is missing"]),
    Case::new("cpu-cap-fpu", run)
        .options(&["--cpu-cap=fpu"])
        .needs(&["osxsave is missing", "extended state"]),
    Case::new("cpu-cap-exact", run)
        .options(&["--cpu-cap=cpu"])
        .needs(&["word 9 is"])
        .stays(EXACT),
    Case::new("cpu-cap-all", run)
        .options(&["--cpu-cap"])
        .needs(&["avx2 is missing", "extended state", "word 9 is"])
        .stays(EXACT),
    // Only one of the two sides cares.
    Case::new("cpu-cap-written-only", run).dump_options(&["--cpu-cap=all"]),
    Case::new("cpu-cap-not-compared", run)
        .dump_options(&["--cpu-cap=all"])
        .restore_options(&["--cpu-cap=none"]),
];

/// Why some restore on no other CPU.
const EXACT: &str = "exactly this CPU is asked for";

fn run() -> Result<()> {
    let before = __cpuid(0);
    zdtm::checkpoint()?;
    check_eq!(__cpuid(0), before);
    Ok(())
}
