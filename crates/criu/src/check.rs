//! `criu check`: what the running kernel can do, printed.

use std::io::Write;

use crate::error::{Failure, Kind};
use crate::options::CheckOptions;

/// Prints what was asked about; fails if something that was asked for is missing.
pub fn check(_: &CheckOptions, _: &mut dyn Write) -> Result<(), Failure> {
    Err(Failure::new(Kind::NotImplemented, "check", ""))
}
