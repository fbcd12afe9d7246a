//! `zdtm-run`: the runner as a program; everything is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    zdtm_runner::main(std::env::args().skip(1).collect())
}
