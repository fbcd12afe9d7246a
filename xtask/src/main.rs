//! `cargo xtask VERB`: a verb a file, listed in one table.
mod apt;
mod args;
mod bench;
mod bench_guest;
mod busybox;
mod cache;
mod catalogue;
mod ci;
mod client;
mod codegen;
mod corpus;
mod cpus;
mod criu;
mod cross;
mod demo;
mod disk;
mod edges;
mod emulator;
mod fuzz;
mod guest;
mod initramfs;
mod kernel;
mod kill;
mod machine;
mod modules;
mod network;
mod observe;
mod peer;
mod programs;
mod qemu;
mod room;
mod shell;
mod sources;
mod stub;
mod surroundings;
mod target;
mod tidy;
mod toolchain;
mod trip;
mod zdtm;

use std::process::ExitCode;

/// A verb: its name, what it does, and the function that does it.
type Verb = (
    &'static str,
    &'static str,
    fn(&[String]) -> anyhow::Result<()>,
);

/// Every verb.
const VERBS: &[Verb] = &[
    (
        "bench",
        "what dumps and restores take, beside another criu (--help: options)",
        bench::run,
    ),
    (
        "ci",
        "everything a change has to pass; what CI runs",
        ci::run,
    ),
    (
        "codegen",
        "write crates/criu-image/src/pb from proto/ (--check: only compare)",
        codegen::run,
    ),
    (
        "demo",
        "dump, kill and restore a small program, and show it going on; no root needed",
        demo::run,
    ),
    (
        "fuzz",
        "feed damaged images and texts of /proc to their readers (--help: options)",
        fuzz::run,
    ),
    (
        "kill",
        "kill criu itself at random moments; nothing may be lost (--help: options)",
        kill::run,
    ),
    (
        "network",
        "connections: hosts that they move between, and failures that must leave nothing (--help: options)",
        network::run,
    ),
    (
        "programs",
        "dump, kill, restore and check python, redis, sqlite, bash, go, java (--help: options)",
        programs::run,
    ),
    (
        "stub",
        "check that committed stub bytes are what stub.S assembles to (--write: renew them)",
        stub::run,
    ),
    (
        "tidy",
        "the rules of the house that no compiler checks",
        tidy::run,
    ),
    (
        "zdtm",
        "build criu and the test cases, and run them (--help: options)",
        zdtm::run,
    ),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verb = args.split_first();
    if let Some((name, rest)) = verb
        && let Some((_, _, run)) = VERBS.iter().find(|(known, ..)| known == name)
    {
        return match run(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask {name}: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    eprintln!("usage: cargo xtask VERB");
    for (name, about, _) in VERBS {
        eprintln!("  {name:<10} {about}");
    }
    ExitCode::from(2)
}
