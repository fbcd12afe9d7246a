//! Writes the memory of a process into a directory, reads it back into a new task, and says how long
//! each step took: `memory PID DIRECTORY`. The process goes on; the new task is thrown away.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Instant;

use criu_image::id::FileId;
use criu_image::{Directory, Durability, Store};
use criu_kind::{FileFds, MappedFiles, Result};
use criu_mm::{
    DrainOptions, FillJob, Ground, Materials, Segments, Shared, Space, SpaceImage, SurveyOptions,
    clear, drain, fill, finish, survey,
};
use criu_proc::ProcDir;
use criu_tracee::{Program, Site, Tracee, spawn_root};
use nix::unistd::Pid;

/// Keeps every mapped file open under its own number.
#[derive(Default)]
struct Files(BTreeMap<u32, File>);

impl Files {
    fn open(&mut self, link: &str, writable: bool) -> FileId {
        let file = File::options()
            .read(true)
            .write(writable)
            .open(link)
            .expect("it can be opened");
        let id = u32::try_from(self.0.len()).expect("few") + 1;
        self.0.insert(id, file);
        FileId::new(id)
    }
}

impl MappedFiles for Files {
    fn mapped(&mut self, pid: Pid, range: Range<u64>, writable: bool) -> Result<FileId> {
        Ok(self.open(
            &format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end),
            writable,
        ))
    }

    fn exe(&mut self, pid: Pid) -> Result<FileId> {
        Ok(self.open(&format!("/proc/{pid}/exe"), false))
    }
}

impl FileFds for Files {
    fn fd(&self, id: FileId) -> Result<i32> {
        Ok(self.0[&id.get()].as_raw_fd())
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(pid), Some(directory)) = (args.next(), args.next()) else {
        return Err("usage: memory PID DIRECTORY".into());
    };
    let in_target = args.next().is_none();
    let pid = Pid::from_raw(pid.parse()?);
    let mut clock = Instant::now();
    let mut step = |name: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap_or("?")
            .trim();
        println!(
            "{name:>8} {:>9.3} ms, driver's peak {peak}",
            clock.elapsed().as_secs_f64() * 1e3
        );
        clock = Instant::now();
    };

    let mut files = Files::default();
    let store = Directory::create(&directory, Durability::Process)?;
    let mut tracee = Tracee::seize(pid)?;
    step("seize");
    let options = SurveyOptions {
        allow_uprobes: false,
    };
    let mut space = survey(&ProcDir::open(pid)?, &tracee, &mut files, &options)?;
    step("survey");
    let mut program = Program::new();
    let questions = Space::ask(&mut program);
    let outcome = tracee.run(&program)?;
    space.answer(&outcome, questions);
    step("ask");
    let (mut tracees, mut spaces) = ([tracee], [space]);
    let mut options = DrainOptions {
        in_target,
        next_pages: 1,
    };
    let stats = drain(&mut tracees, &mut spaces, &store, &mut options, &mut |_| {})?;
    step("drain");
    let [tracee] = tracees;
    tracee.release()?;
    spaces[0].write(&store)?;
    store.finish()?;
    step("release");
    println!("{stats:?}");

    let store = Directory::open(&directory)?;
    let images = [SpaceImage::load(&store, spaces[0].id)?];
    let shared = Shared::create(&images, &store)?;
    let ground = Ground::find(&images, 1)?;
    let nursery = ground.nursery()?;
    step("load");
    let mut tracees = [spawn_root(&nursery, &[], 0)?];
    clear(&mut tracees[0], &ground)?;
    shared.fill(&mut tracees[0])?;
    step("clear");
    let jobs = [FillJob {
        tracee: 0,
        image: &images[0],
        parent: None,
    }];
    let stats = fill(
        &mut tracees,
        &jobs,
        &Materials {
            ground: &ground,
            files: &files,
            shared: &shared,
            segments: &Segments::default(),
        },
        &mut |_| (),
    )?;
    step("fill");
    finish(&mut tracees, &jobs, &ground, &files)?;
    step("finish");
    println!("{stats:?}");
    Ok(())
}
