//! Real processes, and what becomes of their files.
//!
//! The processes are Python scripts that print a line when they are ready. Needs root, as a dump does.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use criu_files::{Collector, DumpOptions, Files, KINDS, RestoreOptions, Validation};
use criu_image::id::FdTableId;
use criu_image::{Memory, Store, StoreExt, desc};
use criu_kind::MappedFiles;
use criu_proc::{Fdinfo, ProcDir};
use criu_tracee::{Nursery, Program, Site, Tracee, spawn_root};
use nix::unistd::Pid;

const PRELUDE: &str = "
import os, sys, select, socket, signal, time, fcntl, struct, ctypes
dir = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
";

pub(crate) struct Script(Child);

impl Script {
    pub(crate) fn start(directory: &std::path::Path, text: &str) -> Self {
        let text = format!("{PRELUDE}{text}\nprint('ready', flush=True)\ntime.sleep(1000)\n");
        let mut child = Command::new("python3")
            .args(["-c", &text])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ours may be a log that grows meanwhile.
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

pub(crate) fn dump_options() -> DumpOptions {
    DumpOptions {
        irmap: None,
        devices: Vec::new(),
        ghost_limit: 1 << 20,
        link_remap: false,
        evasive_devices: false,
        mounts: false,
        file_locks: false,
        validation: Validation::BuildId,
        external: Vec::new(),
        tree: Vec::new(),
        namespaces: Vec::new(),
    }
}

pub(crate) fn restore_options() -> RestoreOptions {
    RestoreOptions {
        devices: Vec::new(),
        policies: Box::new(|_| criu_files::FilePolicy::Strict),
        validation: Validation::BuildId,
        skip_permissions: false,
        inherited: Vec::new(),
        external: Vec::new(),
        root: None,
        memory: |_, _, _, _| Ok(()),
    }
}

/// Dumps all files of processes, stopped meanwhile.
pub(crate) fn dump(
    pids: &[Pid],
    options: DumpOptions,
) -> criu_kind::Result<(Memory, Vec<FdTableId>)> {
    let store = Memory::new();
    let held = Tracee::seize_all(pids, None)?;
    let mut tables = Vec::new();
    let mut collector = Collector::new(options, &store, KINDS.iter().copied());
    for tracee in &held {
        let proc = ProcDir::open(tracee.pid())?;
        let threads = proc.threads()?;
        let table = collector.table(tracee.pid(), &proc, &threads)?;
        tables.push(table.id);
        let fs = collector.fs(tracee.pid(), &proc, &threads)?;
        store.write_entry(desc::FS, tracee.pid().as_raw().cast_unsigned(), &fs)?;
        collector.exe(tracee.pid())?;
    }
    collector.finish()?.keep()?;
    store.finish()?;
    Ok((store, tables))
}

pub(crate) fn nursery() -> Nursery {
    let start = 0x2000_0000_0000 + 0x1_0000_0000 * u64::from(std::process::id() % 1000);
    (0..)
        .find_map(|step| Nursery::map(start + step * 0x100_0000, 1).ok())
        .expect("a hole")
}

pub(crate) struct Restored<'s> {
    pub(crate) files: Files<'s>,
    pub(crate) tasks: Vec<Tracee>,
    _nursery: Nursery,
}

/// Makes the files and a new task for each table.
pub(crate) fn restore<'s>(
    store: &'s Memory,
    tables: &[FdTableId],
) -> criu_kind::Result<Restored<'s>> {
    restore_with(store, tables, &vec![None; tables.len()])
}

/// The same, with pids where tasks must have theirs.
pub(crate) fn restore_with<'s>(
    store: &'s Memory,
    tables: &[FdTableId],
    pids: &[Option<i32>],
) -> criu_kind::Result<Restored<'s>> {
    let mut files = Files::load(store, restore_options(), KINDS.iter().copied())?;
    files.check()?;
    files.open_all()?;
    let nursery = nursery();
    let mut tasks = Vec::new();
    for (table, pid) in tables.iter().zip(pids) {
        let pid: Vec<i32> = pid.iter().copied().collect();
        let task = spawn_root(&nursery, &pid, 0)?;
        files.set_tasks([(*table, (task.pid().as_raw().cast_unsigned()).into())]);
        tasks.push(task);
    }
    for (table, task) in tables.iter().zip(&mut tasks) {
        let mut program = Program::new();
        let arrivals = files.place(*table, &mut program)?;
        arrivals.check(&task.run(&program)?)?;
    }
    for (table, task) in tables.iter().zip(&mut tasks) {
        let mut program = Program::new();
        files.settle(*table, &mut program)?;
        task.run(&program)?;
    }
    for (table, task) in tables.iter().zip(&mut tasks) {
        let mut program = Program::new();
        files.arm(*table, &mut program)?;
        task.run(&program)?;
    }
    Ok(Restored {
        files,
        tasks,
        _nursery: nursery,
    })
}

pub(crate) fn table_of(pid: Pid) -> BTreeMap<i32, (String, Fdinfo)> {
    let proc = ProcDir::open(pid).expect("it lives");
    let fds = proc.fds().expect("a list");
    fds.into_iter()
        .map(|fd| {
            let link = proc
                .readlink(&format!("fd/{fd}"))
                .expect("open")
                .to_string_lossy()
                .into_owned();
            (fd, (link, proc.fdinfo(fd).expect("open")))
        })
        .collect()
}

/// Both have the same numbers, flags, positions and links, but for the numbers of pipes.
pub(crate) fn assert_same(
    before: &BTreeMap<i32, (String, Fdinfo)>,
    after: &BTreeMap<i32, (String, Fdinfo)>,
) {
    let shown = |table: &BTreeMap<i32, (String, Fdinfo)>| -> Vec<String> {
        table
            .iter()
            .map(|(fd, (link, info))| {
                let link = if link.starts_with("pipe:") {
                    "pipe"
                } else {
                    link
                };
                let mut lines: Vec<String> = info
                    .lines
                    .iter()
                    .map(|line| String::from_utf8_lossy(&line.text).into_owned())
                    .filter(|line| !line.starts_with("eventfd-id") && !line.starts_with("it_value"))
                    .map(|line| line.split(" pos:").next().unwrap_or("").to_owned())
                    .collect();
                lines.sort(); // Targets of epoll come in the order of their addresses.
                format!(
                    "{fd} {link} pos {} flags {:o} {lines:?}",
                    info.pos, info.flags
                )
            })
            .collect()
    };
    assert_eq!(shown(before), shown(after));
}

pub(crate) fn round_trip(text: &str) -> (tempfile::TempDir, Script, Memory) {
    let directory = tempfile::tempdir().expect("a directory");
    let script = Script::start(directory.path(), text);
    let before = table_of(script.pid());
    let (store, tables) =
        dump(&[script.pid()], dump_options()).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(script.pid()));
    let restored = restore(&store, &tables).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&before, &table_of(restored.tasks[0].pid()));
    drop(restored);
    (directory, script, store)
}
