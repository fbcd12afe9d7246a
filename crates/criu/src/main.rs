//! The `criu` command.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use criu_cli::config::Surroundings;

fn main() -> ExitCode {
    match Surroundings::current() {
        Ok(around) => criu::run(
            std::env::args_os().skip(1),
            &around,
            &mut io::stdout(),
            &mut io::stderr(),
        )
        .into(),
        Err(error) => {
            eprintln!("Error (criu): the current directory cannot be found: {error}");
            ExitCode::FAILURE
        }
    }
}
