//! Every option there is, once: its spelling, its argument, the verbs it means something to, and how far we are.
//!
//! The parser, `--help`, the configuration files and the refusals are all made from this table, so an option
//! cannot be known to one and unknown to another. Spellings are those of CRIU 4.2; the texts are ours.

use crate::verb::Verb;

/// What follows an option's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// Nothing, and `--no-NAME` takes it back.
    Switch,
    /// One value; given twice, the later one counts.
    Value(&'static str),
    /// A value each time it is given.
    Values(&'static str),
    /// A value, only attached: `--name=value`, `-xvalue`. May be given again.
    Attached(&'static str),
}

/// How far this option is, for the verbs it means something to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does what it says.
    Works,
    /// What it asks for holds without doing anything, for the reason given.
    Holds(&'static str),
    /// Refused by name: not written yet.
    Later,
    /// Refused for good, with the text to show.
    Gone(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// The long name, without dashes.
    pub name: &'static str,
    /// The letter, if it has one.
    pub short: Option<char>,
    /// What follows it.
    pub takes: Takes,
    /// The verbs it means something to; given to another, it is accepted and noted in the log.
    pub verbs: &'static [Verb],
    /// How far it is.
    pub status: Status,
    /// One sentence for `--help`.
    pub help: &'static str,
}

use Status::{Gone, Holds, Later, Works};
use Takes::{Attached, Nothing, Switch, Value, Values};
use Verb::{
    Check, CpuinfoCheck, CpuinfoDump, Dedup, Dump, LazyPages, PageServer, PreDump, Restore,
    Service, Swrk,
};

type Verbs = &'static [Verb];
const ALL: Verbs = &[
    Dump,
    PreDump,
    Restore,
    LazyPages,
    Check,
    PageServer,
    Service,
    Swrk,
    Dedup,
    CpuinfoDump,
    CpuinfoCheck,
];
const BOTH: Verbs = &[Dump, Restore];
const TREE: Verbs = &[Dump, PreDump, Restore];
const DUMPS: Verbs = &[Dump, PreDump];
const DUMP: Verbs = &[Dump];
const BACK: Verbs = &[Restore];
const CHECK: Verbs = &[Check];
const CPU: Verbs = &[Dump, Restore, CpuinfoDump, CpuinfoCheck];
const DAEMONS: Verbs = &[LazyPages, PageServer, Service];
const PAGES: Verbs = &[Dump, PreDump, Restore, LazyPages, PageServer, Dedup];

const fn opt(
    name: &'static str,
    short: char,
    takes: Takes,
    verbs: Verbs,
    status: Status,
    help: &'static str,
) -> Opt {
    let short = if short == ' ' { None } else { Some(short) };
    Opt {
        name,
        short,
        takes,
        verbs,
        status,
        help,
    }
}

const ONE_LOG: Status =
    Holds("nothing of ours runs in the tasks, so there is one log, and its lines name the task");
const NOTHING_OLD: Status = Holds("there is no obsolete behaviour to allow");

/// All options, by heading.
#[rustfmt::skip]
pub const OPTIONS: &[(&str, &[Opt])] = &[
    ("General", &[
        opt("tree",              't', Value("PID"),        DUMPS, Works, "The root of the process tree to dump"),
        opt("images-dir",        'D', Value("DIR"),        ALL,   Works, "Where the images are, or go [here]"),
        opt("work-dir",          'W', Value("DIR"),        ALL,   Works, "Where logs, pid files and statistics go [the images directory]"),
        opt("log-file",          'o', Value("FILE"),       ALL,   Works, "Write the log to FILE in the work directory; - is standard output [standard error]"),
        opt("verbosity",         'v', Attached("N"),       ALL,   Works, "How much to log: 0 results only, 1 errors, 2 warnings, 3 stages and times, 4 details, 5 each system call; without N, one more [2]"),
        opt("log-pid",           ' ', Switch,              BACK,  ONE_LOG, "Keep a log for each task"),
        opt("timeout",           ' ', Value("SECONDS"),    DUMPS, Works, "Give up if collecting the tasks takes longer; 0 never gives up [10]"),
        opt("action-script",     ' ', Values("FILE"),      TREE,  Works, "Run FILE at each step a script may act on; may be repeated"),
        opt("pidfile",           ' ', Value("FILE"),       &[Restore, LazyPages, PageServer, Service], Works, "Write the pid of the restored root task, or of the server, to FILE"),
        opt("display-stats",     ' ', Switch,              BOTH,  Works, "Print the statistics at the end"),
        opt("unprivileged",      ' ', Switch,              ALL,   Works, "Do what can be done without being root; on by itself for other users"),
        opt("plan",              ' ', Nothing,             BOTH,  Works, "Say what would be done and do nothing"),
        opt("config",            ' ', Value("FILE"),       ALL,   Works, "Read options from FILE, and not from the default files"),
        opt("no-default-config", ' ', Nothing,             ALL,   Works, "Do not read the default files"),
        opt("deprecated",        ' ', Switch,              TREE,  NOTHING_OLD, "Allow obsolete behaviour"),
        opt("stream",            ' ', Switch,              TREE,  Later, "Pass the images through criu-image-streamer"),
        opt("libdir",            'L', Value("DIR"),        TREE,  Later, "Where plugins are"),
        opt("daemon",            ' ', Switch,              DAEMONS, Later, "Serve in the background"),
        opt("status-fd",         ' ', Value("FD"),         DAEMONS, Later, "Write one zero byte to FD when ready"),
        opt("close",             ' ', Values("FD"),        ALL,   Later, "Close FD first"),
        opt("ms",                ' ', Nothing,             ALL,   Gone("--ms was removed; criu check has --extra, --experimental and --all"), "Removed"),
        opt("help",              'h', Nothing,             ALL,   Works, "Print this"),
        opt("version",           'V', Nothing,             ALL,   Works, "Print the version"),
    ]),
    ("End state", &[
        opt("leave-running",     'R', Nothing,             DUMP,  Works, "Let the tasks run on after the dump [they are killed]"),
        opt("leave-stopped",     's', Nothing,             BOTH,  Works, "Leave the tasks stopped"),
        opt("restore-detached",  'd', Switch,              BACK,  Works, "Return once the tasks run, instead of waiting for them to end"),
        opt("restore-sibling",   'S', Switch,              BACK,  Later, "Restore the root task as a child of the caller; with -d"),
        opt("exec-cmd",          ' ', Nothing,             BACK,  Works, "Become the command after -- when the tasks run"),
        opt("verify",            ' ', Switch,              BACK,  Works, "Check the images and the files they name before anything is made [on]"),
    ]),
    ("Tasks and files", &[
        opt("shell-job",         'j', Switch,              BOTH,  Works, "The tree was started by a shell: its session and terminal are outside"),
        opt("file-locks",        'l', Switch,              BOTH,  Works, "Keep file locks; without it a lock is an error"),
        opt("link-remap",        ' ', Switch,              BOTH,  Works, "Give open files whose name is gone a temporary one"),
        opt("ghost-limit",       ' ', Value("SIZE"),       DUMP,  Works, "Largest removed file to put into the images; K, M, G [1M]"),
        opt("ghost-fiemap",      ' ', Switch,              DUMP,  Works, "Find the holes of removed files by FIEMAP first [on]"),
        opt("evasive-devices",   ' ', Switch,              DUMP,  Works, "Open a device by any path that leads to it"),
        opt("file-validation",   ' ', Value("HOW"),        BOTH,  Works, "Check files by filesize or buildid [buildid]"),
        opt("file-policy",       ' ', Values("PATH=HOW"),  BACK,  Works, "How a file is checked: strict, ignore, append (may have grown), truncate (cut to the size it had), replace:OTHER; * in PATH is any text"),
        opt("skip-file-rwx-check", ' ', Switch,            BACK,  Works, "Do not compare the permissions of files"),
        opt("force-irmap",       ' ', Switch,              DUMPS, Works, "Search for watched files without a path, in /etc, /var/log and the like"),
        opt("irmap-scan-path",   ' ', Values("PATH"),      DUMPS, Works, "Search for watched files without a path in this directory"),
        opt("allow-uprobes",     ' ', Switch,              BOTH,  Later, "Accept tasks with uprobes"),
        opt("cpu-cap",           ' ', Attached("CAP,.."),  CPU,   Works, "What of the CPU must match: cpu, fpu, ins, all, none; ^ negates [fpu,ins]"),
        opt("lsm-profile",       ' ', Value("TYPE:NAME"),  BACK,  Later, "Give the tasks this security label"),
    ]),
    ("What lies outside the tree", &[
        opt("external",          ' ', Values("RESOURCE"),  BOTH,  Works, "An object the tree uses but does not own: tty[..] file[..] dev[..] unix[..] mnt[..] net[..] pid[..] veth[..] macvlan[..] netdev[..]"),
        opt("inherit-fd",        ' ', Values("fd[N]:KEY"), BACK,  Works, "Use our descriptor N where the images say KEY"),
        opt("ext-unix-sk",       'x', Attached("INO,.."),  BOTH,  Works, "Allow socket peers outside the tree"),
        opt("join-ns",           'J', Values("NS:WHERE"),  BACK,  Later, "Restore into an existing namespace"),
        opt("empty-ns",          ' ', Values("NS"),        BOTH,  Later, "Make this namespace but leave it empty"),
        opt("veth-pair",         ' ', Values("IN=OUT"),    BACK,  Later, "Name the outer end of a veth pair; see --external veth"),
        opt("root",              'r', Value("DIR"),        BACK,  Later, "The new root of the mount namespace"),
        opt("ext-mount-map",     'M', Values("KEY:VALUE"), BOTH,  Later, "An external mount, or auto; see --external mnt"),
        opt("enable-external-sharing", ' ', Nothing,       BOTH,  Later, "Allow mounts shared with the outside"),
        opt("enable-external-masters", ' ', Nothing,       BOTH,  Later, "Allow mounts that receive from the outside"),
        opt("enable-fs",         ' ', Values("FS,.."),     BOTH,  Later, "Treat these filesystems as mountable without content"),
        opt("skip-mnt",          ' ', Values("PATH"),      BOTH,  Later, "Leave this mount out"),
        opt("mntns-compat-mode", ' ', Switch,              BACK,  Later, "Restore mounts the old way"),
        opt("lsm-mount-context", ' ', Value("CONTEXT"),    BACK,  Later, "Replace the security context of mounts"),
    ]),
    ("Network", &[
        opt("tcp-established",   ' ', Switch,              BOTH,  Works, "Keep established connections"),
        opt("tcp-close",         ' ', Switch,              BOTH,  Works, "Close connections"),
        opt("tcp-policy",        ' ', Values("WHICH=HOW"), BOTH,  Works, "keep, close, reset or listen-only connections from or to an end: [local:|remote:]ADDRESS, *:PORT or ADDRESS:PORT"),
        opt("skip-in-flight",    ' ', Switch,              BOTH,  Works, "Forget connections not accepted yet"),
        opt("network-lock",      ' ', Value("HOW"),        BOTH,  Works, "Block packets meanwhile by iptables, nftables or skip [iptables]"),
        opt("tcp-remap",         ' ', Values("OLD=NEW"),   BACK,  Works, "Put internet sockets elsewhere: an address, :PORT or ADDRESS:PORT in the place of another"),
        opt("weak-sysctls",      ' ', Switch,              BACK,  Later, "Accept settings this kernel does not have"),
    ]),
    ("Control groups", &[
        opt("manage-cgroups",    ' ', Attached("HOW"),     BOTH,  Works, "none, ignore, props, soft, full or strict [soft]"),
        opt("cgroup-root",       ' ', Values("[CTL:]PATH"), BACK, Later, "Restore control groups under PATH"),
        opt("cgroup-props",      ' ', Value("TEXT"),       DUMP,  Later, "Which properties to dump"),
        opt("cgroup-props-file", ' ', Value("FILE"),       DUMP,  Later, "The same, from FILE"),
        opt("cgroup-dump-controller", ' ', Values("NAME"), DUMP,  Later, "Dump only this controller"),
        opt("cgroup-yard",       ' ', Value("DIR"),        BOTH,  Later, "Where control groups are mounted"),
        opt("freeze-cgroup",     ' ', Value("PATH"),       DUMPS, Later, "Stop the tasks by this freezer"),
    ]),
    ("Memory and page servers", &[
        opt("prev-images-dir",   ' ', Value("DIR"),        PAGES, Later, "The parent images, relative to the images directory"),
        opt("track-mem",         ' ', Switch,              DUMPS, Later, "Track which memory changes from now on"),
        opt("auto-dedup",        ' ', Switch,              PAGES, Later, "Punch pages out of older images as they are replaced"),
        opt("pre-dump-mode",     ' ', Value("HOW"),        &[PreDump], Later, "splice or read"),
        opt("lazy-pages",        ' ', Nothing,             PAGES, Later, "Bring memory on demand"),
        opt("page-server",       ' ', Switch,              DUMPS, Later, "Send memory to a page server"),
        opt("address",           ' ', Value("ADDR"),       &[Dump, PreDump, LazyPages, PageServer, Service], Later, "The server's address"),
        opt("port",              ' ', Value("PORT"),       &[Dump, PreDump, LazyPages, PageServer], Later, "The server's port"),
        opt("ps-socket",         ' ', Value("FD"),         PAGES, Later, "Use this connection"),
        opt("tls",               ' ', Switch,              PAGES, Later, "Encrypt the connection"),
        opt("tls-cacert",        ' ', Value("FILE"),       PAGES, Later, "Certificate of the authority"),
        opt("tls-cacrl",         ' ', Value("FILE"),       PAGES, Later, "Revoked certificates"),
        opt("tls-cert",          ' ', Value("FILE"),       PAGES, Later, "Our certificate"),
        opt("tls-key",           ' ', Value("FILE"),       PAGES, Later, "Our key"),
        opt("tls-no-cn-verify",  ' ', Nothing,             PAGES, Later, "Do not check the peer's name"),
    ]),
    ("Check", &[
        opt("feature",           ' ', Value("NAME"),       CHECK, Works, "Check one feature; list prints the names"),
        opt("extra",             ' ', Switch,              CHECK, Works, "Check what some tasks need, too"),
        opt("experimental",      ' ', Switch,              CHECK, Works, "Check what experiments need, too"),
        opt("all",               ' ', Nothing,             CHECK, Works, "Both"),
    ]),
];

/// Every option, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    OPTIONS.iter().flat_map(|(_, rows)| rows.iter())
}

/// The option with this long name.
pub fn named(name: &str) -> Option<&'static Opt> {
    all().find(|option| option.name == name)
}
