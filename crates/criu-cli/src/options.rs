//! What was typed, given a meaning: one plain struct a verb, every field decided.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;

use crate::config::Surroundings;
use crate::error::Failure;
use crate::external::{DUMPED, External, Inherited, PROVIDED, devices, dumped_devices, irmap};
use crate::log::{Target, Verbosity};
use crate::policy::Policy;
use crate::remap::Remap;
use crate::scripts::Scripts;
pub use crate::tcp::{NetworkLock, Tcp, TcpFate, TcpPolicy, TcpSide};
use crate::typed::{Typed, bad_value, not_yet};
use crate::verb::Verb;

/// What every verb needs.
#[derive(Clone, Debug)]
pub struct Common {
    /// The images directory, absolute.
    pub images: PathBuf,
    /// The work directory, absolute.
    pub work: PathBuf,
    /// Where the log goes.
    pub log: Target,
    /// How much of it.
    pub verbosity: Verbosity,
    /// Do what can be done without being root.
    pub unprivileged: bool,
}

/// What becomes of the tasks after a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndState {
    /// They are killed.
    Killed,
    /// They stay stopped.
    Stopped,
    /// They run on.
    Running,
}

/// What is done about control groups. What is not written yet is refused where this is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Nothing, neither written nor looked at.
    Ignore,
    /// Membership is written; a tree in the caller's own group restores in the caller's own group.
    Soft,
    /// The groups must exist and are not changed.
    Existing,
}

/// How a file named in the images is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileValidation {
    /// By its size.
    Size,
    /// By its build id, or its size if it has none.
    BuildId,
}

/// Which CPU abilities are written and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCap {
    /// All of the CPU, exactly.
    pub cpu: bool,
    /// The floating point state.
    pub fpu: bool,
    /// The instructions.
    pub instructions: bool,
    /// Whether `cpuinfo.img` is written and read at all.
    pub image: bool,
}

/// What dump and restore have in common.
#[derive(Clone, Debug)]
pub struct Tree {
    /// What every verb needs.
    pub common: Common,
    /// Session and terminal are the caller's, outside the tree.
    pub shell_job: bool,
    /// Control groups.
    pub cgroups: Cgroups,
    /// How files are recognised.
    pub validation: FileValidation,
    /// What of the CPU is written and must match.
    pub cpu_cap: CpuCap,
    /// What becomes of connections.
    pub tcp: Tcp,
    /// What stays outside, or what the caller provides for it.
    pub external: Vec<External>,
    /// Hooks.
    pub scripts: Scripts,
    /// Print the statistics.
    pub display_stats: bool,
    /// Only say what would be done.
    pub plan: bool,
}

/// A dump.
#[derive(Clone, Debug)]
pub struct DumpOptions {
    /// What dump and restore have in common.
    pub tree: Tree,
    /// The root of the tree.
    pub root: Pid,
    /// What becomes of the tasks.
    pub end: EndState,
    /// Locks are kept; otherwise a lock is an error.
    pub file_locks: bool,
    /// Nameless open files may be given a temporary name.
    pub link_remap: bool,
    /// Largest removed file to keep, in bytes.
    pub ghost_limit: u64,
    /// Find holes by FIEMAP before trying SEEK_DATA.
    pub ghost_fiemap: bool,
    /// Any path to a device will do.
    pub evasive_devices: bool,
    /// Devices that stay outside: major and minor number, and their name.
    pub external_devices: Vec<(u32, u32, String)>,
    /// Where to search for watched files that have no path otherwise; `None`: nowhere.
    pub irmap: Option<Vec<PathBuf>>,
    /// Objects that stay outside: `file[1f:2a]`.
    pub outside: Vec<String>,
    /// How long collecting the tasks may take.
    pub timeout: Option<Duration>,
}

/// A restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// What dump and restore have in common.
    pub tree: Tree,
    /// Return once the tasks run.
    pub detached: bool,
    /// The root task becomes a child of our parent.
    pub sibling: bool,
    /// Leave the tasks stopped.
    pub stopped: bool,
    /// Where to write the root task's pid, absolute.
    pub pidfile: Option<PathBuf>,
    /// Compare the permissions of files.
    pub check_permissions: bool,
    /// Check images and files before anything is made.
    pub verify: bool,
    /// Objects that may be outside: `unix[*]`.
    pub outside: Vec<String>,
    /// Descriptors the caller provides.
    pub inherited: Vec<Inherited>,
    /// Paths of devices the caller provides, by name.
    pub devices: Vec<(String, PathBuf)>,
    /// What may have happened to files, by the paths they had.
    pub policies: Vec<Policy>,
    /// Where internet sockets are to be instead.
    pub remaps: Vec<Remap>,
    /// What to become when the tasks run; empty is nothing.
    pub exec: Vec<OsString>,
}

/// A check of the kernel.
#[derive(Clone, Debug)]
pub enum CheckOptions {
    /// Print the names of the features.
    List,
    /// One feature.
    One(String),
    /// What is mandatory, and what some tasks or experiments need.
    Classes {
        /// And what some tasks need.
        extra: bool,
        /// And what experiments need.
        experimental: bool,
    },
}

/// The options of `cpuinfo dump` and `cpuinfo check`.
#[derive(Clone, Copy, Debug)]
pub struct CpuinfoOptions {
    /// Compare with what is written instead of writing.
    pub check: bool,
    /// What must match.
    pub cpu_cap: CpuCap,
}

impl Common {
    /// Reads what every verb needs.
    pub fn read(typed: &Typed, around: &Surroundings) -> Result<Self, Failure> {
        let images = around
            .cwd
            .join(typed.value("images-dir").unwrap_or(OsStr::new("")));
        let work = typed
            .value("work-dir")
            .map_or_else(|| images.clone(), |dir| around.cwd.join(dir));
        let log = match typed.value("log-file") {
            None => Target::Stderr,
            Some(name) if name == "-" => Target::Stdout,
            Some(name) => Target::File(work.join(name)),
        };
        let verbosity = Verbosity::add_up(typed.values("verbosity"))
            .map_err(|value| bad_value("verbosity", value))?;
        Ok(Common {
            images,
            work,
            log,
            verbosity,
            unprivileged: typed.switch("unprivileged", !around.is_root),
        })
    }
}

impl Tree {
    fn read(typed: &Typed, around: &Surroundings, kinds: &[&'static str]) -> Result<Self, Failure> {
        let common = Common::read(typed, around)?;
        let paths = typed.values("action-script").map(OsString::from).collect();
        let scripts = Scripts {
            paths,
            images: common.images.clone(),
            work: common.work.clone(),
        };
        Ok(Tree {
            common,
            shell_job: typed.switch("shell-job", false),
            cgroups: cgroups(typed)?,
            validation: validation(typed)?,
            cpu_cap: cpu_cap(typed)?,
            tcp: Tcp::read(typed)?,
            external: typed.texts("external", |text| External::parse(text, kinds))?,
            scripts,
            display_stats: typed.switch("display-stats", false),
            plan: typed.switch("plan", false),
        })
    }
}

impl DumpOptions {
    /// Gives the words of a dump their meaning.
    pub fn read(typed: &Typed, around: &Surroundings) -> Result<Self, Failure> {
        let missing = || Failure::usage("a dump needs --tree PID");
        let root: i32 = typed.parsed("tree")?.ok_or_else(missing)?;
        if root <= 0 {
            return Err(bad_value("tree", root.to_string().as_ref()));
        }
        let end = match (
            typed.switch("leave-running", false),
            typed.switch("leave-stopped", false),
        ) {
            (true, true) => {
                let text = "--leave-running and --leave-stopped exclude each other";
                return Err(Failure::usage(text));
            }
            (true, false) => EndState::Running,
            (false, true) => EndState::Stopped,
            (false, false) => EndState::Killed,
        };
        let seconds = typed.parsed("timeout")?.unwrap_or(10);
        let tree = Tree::read(typed, around, DUMPED)?;
        Ok(DumpOptions {
            external_devices: dumped_devices(&tree.external)?,
            irmap: irmap(typed),
            outside: outside(typed, &tree.external)?,
            tree,
            root: Pid::from_raw(root),
            end,
            file_locks: typed.switch("file-locks", false),
            link_remap: typed.switch("link-remap", false),
            ghost_limit: typed.value("ghost-limit").map_or(Ok(1 << 20), size)?,
            ghost_fiemap: typed.switch("ghost-fiemap", true),
            evasive_devices: typed.switch("evasive-devices", false),
            timeout: (seconds != 0).then(|| Duration::from_secs(seconds)),
        })
    }
}

impl RestoreOptions {
    /// Gives the words of a restore their meaning.
    pub fn read(typed: &Typed, around: &Surroundings) -> Result<Self, Failure> {
        let tree = Tree::read(typed, around, PROVIDED)?;
        Ok(RestoreOptions {
            outside: outside(typed, &[])?,
            detached: typed.switch("restore-detached", false),
            sibling: typed.switch("restore-sibling", false),
            stopped: typed.switch("leave-stopped", false),
            pidfile: typed
                .value("pidfile")
                .map(|path| tree.common.work.join(path)),
            check_permissions: !typed.switch("skip-file-rwx-check", false),
            verify: typed.switch("verify", true),
            inherited: typed.texts("inherit-fd", Inherited::parse)?,
            devices: devices(&tree.external)?,
            policies: typed.texts("file-policy", Policy::parse)?,
            remaps: typed.texts("tcp-remap", Remap::parse)?,
            exec: typed.operands.clone(),
            tree,
        })
    }
}

impl CheckOptions {
    /// Gives the words of a check their meaning.
    pub fn read(typed: &Typed) -> Result<Self, Failure> {
        let all = typed.switch("all", false);
        Ok(match typed.parsed::<String>("feature")? {
            Some(name) if name == "list" => CheckOptions::List,
            Some(name) => CheckOptions::One(name),
            None => CheckOptions::Classes {
                extra: all || typed.switch("extra", false),
                experimental: all || typed.switch("experimental", false),
            },
        })
    }
}

impl CpuinfoOptions {
    /// Gives the words of `cpuinfo` their meaning.
    pub fn read(typed: &Typed) -> Result<Self, Failure> {
        Ok(CpuinfoOptions {
            check: typed.verb == Verb::CpuinfoCheck,
            cpu_cap: cpu_cap(typed)?,
        })
    }
}

/// What stays outside, each written in one way: `file[mnt_id:inode]` and `tty[rdev:dev]` in hexadecimal,
/// `unix[inode]` in decimal, `unix[*]` for all sockets that `--ext-unix-sk` allows, `tty[*]` for
/// the terminal of `--shell-job`.
fn outside(typed: &Typed, external: &[External]) -> Result<Vec<String>, Failure> {
    let one = |external: &External| {
        let (kind, inside) = (external.kind, external.inside.as_str());
        let key = match kind {
            "file" | "tty" => inside.split_once(':').and_then(|(first, second)| {
                let first = u32::from_str_radix(first, 16).ok()?;
                let second = u64::from_str_radix(second, 16).ok()?;
                Some(format!("{kind}[{first:x}:{second:x}]"))
            }),
            "unix" => inside
                .parse::<u32>()
                .ok()
                .map(|inode| format!("unix[{inode}]")),
            _ => return Err(not_yet(&format!("external {kind}[..]"))),
        };
        key.ok_or_else(|| bad_value("external", format!("{kind}[{inside}]").as_ref()))
    };
    let named = external.iter().filter(|external| external.kind != "dev");
    let mut keys: Vec<String> = named.map(one).collect::<Result<_, _>>()?;
    if typed.switch("shell-job", false) {
        keys.push("tty[*]".to_owned());
    }
    for value in typed.values("ext-unix-sk") {
        let Some(text) = value.to_str() else {
            return Err(bad_value("ext-unix-sk", value));
        };
        if text.is_empty() {
            keys.push("unix[*]".to_owned());
        }
        for inode in text.split(',').filter(|inode| !inode.is_empty()) {
            let inode: u32 = inode.parse().map_err(|_| bad_value("ext-unix-sk", value))?;
            keys.push(format!("unix[{inode}]"));
        }
    }
    Ok(keys)
}

/// Bytes, with K, M or G behind.
fn size(value: &OsStr) -> Result<u64, Failure> {
    let parse = |text: &str| {
        let number = text.trim_end_matches(['K', 'k', 'M', 'm', 'G', 'g']);
        let shift = match text.strip_prefix(number)? {
            "" => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    value
        .to_str()
        .and_then(parse)
        .ok_or_else(|| bad_value("ghost-limit", value))
}

fn cgroups(typed: &Typed) -> Result<Cgroups, Failure> {
    match typed.value("manage-cgroups").unwrap_or(OsStr::new("")) {
        mode if mode.is_empty() || mode == "soft" => Ok(Cgroups::Soft),
        mode if mode == "ignore" => Ok(Cgroups::Ignore),
        mode if mode == "none" => Ok(Cgroups::Existing),
        mode if ["props", "full", "strict"]
            .iter()
            .any(|known| mode == *known) =>
        {
            Err(not_yet(&format!("manage-cgroups={}", mode.display())))
        }
        mode => Err(bad_value("manage-cgroups", mode)),
    }
}

fn validation(typed: &Typed) -> Result<FileValidation, Failure> {
    match typed.value("file-validation") {
        None => Ok(FileValidation::BuildId),
        Some(how) if how == "buildid" => Ok(FileValidation::BuildId),
        Some(how) if how == "filesize" => Ok(FileValidation::Size),
        Some(how) => Err(bad_value("file-validation", how)),
    }
}

/// Each word adds to what holds so far, or with `^` takes away; a bare `--cpu-cap` is everything.
fn cpu_cap(typed: &Typed) -> Result<CpuCap, Failure> {
    let mut cap = CpuCap {
        cpu: false,
        fpu: true,
        instructions: true,
        image: false,
    };
    for value in typed.values("cpu-cap") {
        let text = value.to_str().ok_or_else(|| bad_value("cpu-cap", value))?;
        for word in if text.is_empty() { "all" } else { text }.split(',') {
            let on = !word.starts_with('^');
            match word.trim_start_matches('^') {
                "cpu" => cap.cpu = on,
                "fpu" => cap.fpu = on,
                "ins" => cap.instructions = on,
                "all" => {
                    cap = CpuCap {
                        cpu: on,
                        fpu: on,
                        instructions: on,
                        ..cap
                    }
                }
                "none" => {
                    cap = CpuCap {
                        cpu: !on,
                        fpu: !on,
                        instructions: !on,
                        ..cap
                    }
                }
                _ => return Err(bad_value("cpu-cap", value)),
            }
        }
        cap.image = cap.cpu || cap.fpu || cap.instructions;
    }
    Ok(cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::typed::{self, Asked};

    fn around() -> Surroundings {
        let nowhere = PathBuf::from("/nowhere");
        Surroundings {
            cwd: "/here".into(),
            system_config: nowhere.clone(),
            home: Some(nowhere),
            config_file: None,
            is_root: true,
        }
    }

    fn read<T>(line: &str, read: impl Fn(&Typed) -> Result<T, Failure>) -> Result<T, String> {
        match typed::read(line.split_whitespace().map(OsString::from), &around()) {
            Ok(Asked::Run(typed)) => read(&typed).map_err(|failure| failure.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_dump() -> Result<(), String> {
        let dump = |line: &str| read(line, |typed| DumpOptions::read(typed, &around()));
        let options = dump(
            "dump -t 12 -D img -W /there -o d.log --ghost-limit 2M --timeout 0 --manage-cgroups=ignore --cpu-cap=cpu,^ins",
        )?;
        assert_eq!(
            (options.root, options.end, options.ghost_limit),
            (Pid::from_raw(12), EndState::Killed, 2 << 20)
        );
        assert_eq!(
            (options.tree.common.images, options.tree.common.log),
            ("/here/img".into(), Target::File("/there/d.log".into()))
        );
        assert_eq!(
            (options.timeout, options.tree.cgroups, options.ghost_fiemap),
            (None, Cgroups::Ignore, true)
        );
        assert_eq!(
            options.tree.cpu_cap,
            CpuCap {
                cpu: true,
                fpu: true,
                instructions: false,
                image: true
            }
        );
        for (line, expected) in [
            ("dump", "options: a dump needs --tree PID"),
            (
                "dump -t -1",
                "options: `-1` is not a value of --tree; see criu --help",
            ),
            (
                "dump -t 1 -sR",
                "options: --leave-running and --leave-stopped exclude each other",
            ),
            (
                "dump -t 1 --ghost-limit 1KM",
                "options: `1KM` is not a value of --ghost-limit; see criu --help",
            ),
            (
                "dump -t 1 --manage-cgroups=full",
                "options: --manage-cgroups=full: not implemented yet",
            ),
        ] {
            assert_eq!(
                dump(line).map(|options| options.root),
                Err(expected.into()),
                "{line}"
            );
        }
        Ok(())
    }

    #[test]
    fn what_lies_outside() -> Result<(), String> {
        let dump = |line: &str| {
            let options = read(line, |typed| DumpOptions::read(typed, &around()))?;
            Ok::<_, String>(options.outside)
        };
        let files = dump("dump -t 1 --external file[1f:2a] --external file[3:fffffffff]")?;
        assert_eq!(files, ["file[1f:2a]", "file[3:fffffffff]"]);
        let others = dump("dump -t 1 --external tty[8803:1D] --external unix[12] -x -x3,4")?;
        assert_eq!(
            others,
            ["tty[8803:1d]", "unix[12]", "unix[*]", "unix[3]", "unix[4]"]
        );
        for (line, expected) in [
            (
                "dump -t 1 --external file[1f]",
                "options: `file[1f]` is not a value of --external; see criu --help",
            ),
            (
                "dump -t 1 --external net[12]:n",
                "options: --external net[..]: not implemented yet",
            ),
        ] {
            assert_eq!(dump(line), Err(expected.into()), "{line}");
        }
        let restore = |line| read(line, |typed| RestoreOptions::read(typed, &around()));
        let given = restore("restore --inherit-fd fd[3]:file[1f:2a]")?.inherited;
        assert_eq!((given[0].fd, given[0].key.as_str()), (3, "file[1f:2a]"));
        restore("restore --external mnt[a]:/b").expect_err("not yet");
        Ok(())
    }

    #[test]
    fn a_restore() -> Result<(), String> {
        let options = read("restore -dj --pidfile p -W w --no-verify", |typed| {
            RestoreOptions::read(typed, &around())
        })?;
        assert!(
            options.detached
                && options.tree.shell_job
                && !options.verify
                && options.check_permissions
        );
        assert_eq!(
            (options.tree.common.images, options.pidfile),
            ("/here/".into(), Some("/here/w/p".into()))
        );
        Ok(())
    }
}
