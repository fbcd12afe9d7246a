//! `zdtm-cases AREA/NAME`: all cases in one small binary.

fn main() -> std::process::ExitCode {
    zdtm::main(zdtm_cases::AREAS)
}
