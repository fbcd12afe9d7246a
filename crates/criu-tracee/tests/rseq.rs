//! A thread held in a restartable sequence goes on at its abort handler.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use criu_tracee::arch::Regs;
use criu_tracee::{Program, Site, Tracee};
use nix::unistd::Pid;

fn counter(tracee: &Tracee, at: u64) -> u64 {
    let mut bytes = [0; 8];
    tracee.memory().read(at, &mut bytes).expect("it lives");
    u64::from_ne_bytes(bytes)
}

#[test]
fn a_sequence_is_aborted_and_not_forgotten() {
    if std::env::consts::ARCH != "x86_64" {
        return; // The sequence is x86_64 code.
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/in_sequence.py");
    let mut child = Command::new("python3")
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("text");
    let mut numbers = line
        .split_whitespace()
        .map(|word| word.parse::<u64>().expect("a number"));
    let (abort, at) = (numbers.next().expect("two"), numbers.next().expect("two"));
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut aborted = 0;
    for works in [false, true, true] {
        std::thread::sleep(Duration::from_millis(50));
        let mut tracee = Tracee::seize(pid).expect("seize");
        let thread = &tracee.threads()[0];
        assert_eq!(thread.natural().ip(), abort);
        assert!(thread.rseq().expect("glibc has one").kept.is_none());
        if works {
            let mut program = Program::new();
            program.getpid();
            tracee.run(&program).expect("run");
        }
        let now = counter(&tracee, at);
        assert!(
            now > aborted || aborted == 0,
            "it has gone on at the handler since"
        );
        aborted = now.max(1);
        tracee.release().expect("release");
    }
    child.kill().expect("our child");
    child.wait().expect("our child");
}
