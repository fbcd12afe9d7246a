//! `cargo xtask VERB`: a verb a file, listed in one table.
mod args;
mod bench;
mod codegen;
mod criu;
mod demo;
mod kill;
mod observe;
mod programs;
mod room;
mod shell;
mod target;

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
        "kill",
        "kill criu itself at random moments; nothing may be lost (--help: options)",
        kill::run,
    ),
    (
        "programs",
        "dump, kill, restore and check python, redis, sqlite, bash, go, java (--help: options)",
        programs::run,
    ),
];

fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verb = args.split_first();
    if let Some((name, rest)) = verb
        && let Some((_, _, run)) = VERBS.iter().find(|(known, ..)| known == name)
    {
        run(rest)?;
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("usage: cargo xtask VERB");
    for (name, about, _) in VERBS {
        eprintln!("  {name:<10} {about}");
    }
    Ok(ExitCode::from(2))
}
