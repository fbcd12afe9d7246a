//! `cargo xtask network`: connections that move to another host, and failures that leave nothing of them.
//!
//! *move*: two network namespaces are hosts, a third is the peer's. A server is dumped in one and restored in the
//! other, its address goes with it, a line with echo and a stream without end go on. The address answers for a moment
//! before the sockets are there, as the peer goes on to send.
//!
//! *fail*: dumps and restores fail on purpose: action scripts refuse at every step, descriptors run out, images cannot
//! be written, the driver is killed. A failed dump must leave the server at work; a failed restore no process, no
//! socket, no route and no table but the one in which the dump has parked the connections, and the next restore works.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::client::Client;
use crate::criu::{Criu, complaint, ours};
use crate::target::{Target, last_line};
use crate::{programs, room, shell};

const USAGE: &str = "network [--times N] [--criu PATH] [--only move|fail]
  --times N    how many failures of dumps, and of restores; default: 100. Moves: a tenth
  --criu PATH  try this criu: a program, or the root of a Debian system that has one
  --only NAME  only this one";

const PORT: &str = "7000";

struct Room {
    criu: Criu,
    python: PathBuf,
    streams: PathBuf,
}

pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut args = Args::new(words);
    let chosen = args.value::<PathBuf>("--criu")?;
    let times = args.value::<u32>("--times")?.unwrap_or(100);
    let only = args.value::<String>("--only")?.unwrap_or_default();
    args.finish(USAGE)?;
    let criu = match &chosen {
        Some(path) => path.clone(),
        None => ours()?,
    };
    for (tool, package) in [
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("python3", "python3"),
    ] {
        ensure!(shell::has(tool), "no {tool} (apt-get install {package})");
    }
    if !room::is_inside() {
        let status = room::enter("network", words)?;
        ensure!(status.success(), "a connection was lost");
        return Ok(());
    }
    room::furnish()?;
    let room = Room {
        criu: Criu::at(&criu)?,
        python: programs::python()?,
        streams: shell::root()?.join("zdtm/programs/streams.py"),
    };
    if "move".contains(&only) {
        room.moves(times.div_ceil(10)).context("move")?;
    }
    if "fail".contains(&only) {
        room.failures(times).context("fail")?;
    }
    Ok(())
}

/// A shell command that must succeed.
fn sh(text: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", text]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}: {}", said.trim());
    Ok(())
}

/// Words of a command that runs in a network namespace.
fn within(host: &str) -> Vec<OsString> {
    vec!["nsenter".into(), format!("--net=/run/netns/{host}").into()]
}

/// An action script.
fn script(name: &str, text: &str) -> Result<String> {
    let path = format!("/run/{name}");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// How often the line and the stream have gone on.
fn progress(dir: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(dir.join("progress")).unwrap_or_default();
    text.split_whitespace().flat_map(str::parse).collect()
}

/// Waits until both go on.
fn goes_on(dir: &Path, client: &mut Client) -> Result<()> {
    let (before, deadline) = (progress(dir), Instant::now() + Duration::from_secs(30));
    loop {
        let now = progress(dir);
        let grown = |index: usize| now.get(index) > before.get(index);
        if grown(0) && grown(1) {
            return Ok(());
        }
        client.lives()?;
        ensure!(
            Instant::now() < deadline,
            "it does not go on: {before:?}, {now:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How a command of criu ended.
enum End {
    Done,
    Failed(String),
}

impl Room {
    fn server(&self, host: &str, address: &str, dir: &Path) -> Result<Target> {
        let mut words = within(host);
        words.push("setsid".into());
        words.push(self.python.clone().into());
        words.push(self.streams.clone().into());
        words.extend(["serve", address, PORT].map(OsString::from));
        let mut target = Target::start(&words, dir)?;
        match target.file("ready", Duration::from_secs(20)) {
            Ok(()) => Ok(target),
            Err(error) => {
                target.end()?;
                Err(error)
            }
        }
    }

    fn client(&self, host: &str, address: &str, dir: &Path) -> Result<Client> {
        let mut words = within(host);
        words.push(self.python.clone().into());
        words.push(self.streams.clone().into());
        words.extend(["talk", address, PORT].map(OsString::from));
        let mut client = Client::start(&words, dir)?;
        goes_on(dir, &mut client)?;
        Ok(client)
    }

    /// Runs criu in a namespace, after some words, with a time limit after which it is killed.
    fn call(
        &self,
        host: &str,
        before: &[String],
        verb: &str,
        images: &Path,
        more: &[&str],
        limit: Option<Duration>,
    ) -> Result<End> {
        let mut words = within(host);
        words.extend(before.iter().map(OsString::from));
        let more = [&["-v2", "--tcp-established"], more].concat();
        words.extend(self.criu.words(verb, images, &more));
        let printed = Path::new("/run/printed");
        let out = File::create(printed)?;
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        if let Some(limit) = limit {
            std::thread::sleep(limit);
            child.kill()?;
        }
        let status = child.wait()?;
        Ok(match status.signal() {
            _ if status.success() => End::Done,
            Some(signal) => End::Failed(format!("signal {signal}")),
            None => End::Failed(complaint(images, verb, &std::fs::read(printed)?)),
        })
    }

    fn must(&self, host: &str, verb: &str, images: &Path, more: &[&str]) -> Result<()> {
        match self.call(host, &[], verb, images, more, None)? {
            End::Done => Ok(()),
            End::Failed(why) => bail!("{verb}: {why}"),
        }
    }

    /// The tables of nf_tables, the routes, the addresses and, by count, the sockets of the server.
    fn surroundings(&self, host: &str) -> Result<(Vec<String>, Vec<String>, usize)> {
        let run = |words: &[&str]| -> Result<Vec<String>> {
            let command = within(host);
            let output = Command::new(&command[0])
                .args(&command[1..])
                .args(words)
                .output()?;
            ensure!(output.status.success(), "{words:?}: {output:?}");
            let text = String::from_utf8(output.stdout)?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let tables = run(&[&path(&self.python), &path(&self.streams), "tables"])?;
        let mut routes = run(&["ip", "-o", "route", "show", "table", "all"])?;
        routes.extend(run(&["ip", "-o", "-6", "route", "show", "table", "all"])?);
        routes.extend(run(&["ip", "-o", "address"])?);
        // In hexadecimal, before the blank that ends the local address.
        let here = format!(":{:04X} ", PORT.parse::<u16>()?);
        let sockets = run(&["cat", "/proc/net/tcp", "/proc/net/tcp6"])?;
        let ours = |line: &&String| line.get(6..28).is_some_and(|end| end.contains(&here));
        Ok((tables, routes, sockets.iter().filter(ours).count()))
    }

    /// The server goes to the other host and back, with its address.
    fn moves(&self, times: u32) -> Result<()> {
        const ADDRESS: &str = "10.77.0.2";
        let hosts = ["here", "there"];
        sh("ip netns add peer; ip -n peer link set lo up")?;
        for host in hosts {
            sh(&format!(
                "ip netns add {host}; ip -n {host} link set lo up
                 ip link add eth0 netns {host} type veth peer name {host} netns peer
                 ip -n {host} link set eth0 up; ip -n peer link set {host} up
                 ip -n peer address add 10.77.0.1/32 dev {host}"
            ))?;
        }
        // What the network does when an address turns up at another host.
        let comes = |host: &str| {
            format!(
                "ip -n {host} address add {ADDRESS}/32 dev eth0
                 ip -n {host} route add 10.77.0.1/32 dev eth0
                 ip -n peer route replace {ADDRESS}/32 dev {host} src 10.77.0.1"
            )
        };
        sh(&comes(hosts[0]))?;
        let dir = room::fresh("target")?;
        let target = self.server(hosts[0], ADDRESS, &dir)?;
        let pid = target.pid().to_string();
        let mut target = Some(target);
        let mut client = self.client("peer", ADDRESS, &dir)?;
        for time in 0..times {
            let from = hosts[time as usize % 2];
            let to = hosts[(time as usize + 1) % 2];
            let images = room::fresh("images")?;
            self.must(from, "dump", &images, &["-t", &pid])?;
            if let Some(target) = target.take() {
                target.killed()?;
            }
            room::bury(client.pid()?)?;
            sh(&format!("ip -n {from} address del {ADDRESS}/32 dev eth0"))?;
            // The peer sends to nobody for a while, and then to a host that has no sockets yet.
            std::thread::sleep(Duration::from_millis(u64::from(time % 3) * 150));
            let steps = [
                "[ \"$CRTOOLS_SCRIPT_ACTION\" = pre-restore ] || exit 0\nset -e",
                &comes(to),
                "sleep 0.5",
            ];
            let script = script("arrive", &steps.join("\n"))?;
            self.must(to, "restore", &images, &["-d", "--action-script", &script])?;
            goes_on(&dir, &mut client).with_context(|| format!("move {time}"))?;
            // The host that was left: nobody comes back there, so what holds the connections goes. The device first: with
            // its namespace it would go some time later.
            let (tables, _, sockets) = self.surroundings(from)?;
            ensure!(sockets == 0, "{from} has {sockets} sockets left");
            ensure!(tables.len() == 1, "{from} has the tables {tables:?}");
            sh(&format!(
                "ip -n peer link del {from}
                 ip netns del {from}; ip netns add {from}; ip -n {from} link set lo up
                 ip link add eth0 netns {from} type veth peer name {from} netns peer
                 ip -n {from} link set eth0 up; ip -n peer link set {from} up
                 ip -n peer address add 10.77.0.1/32 dev {from}"
            ))?;
            let (tables, _, _) = self.surroundings(to)?;
            ensure!(tables.is_empty(), "{to} has the tables {tables:?}");
        }
        client.end()?;
        let counts = progress(&dir);
        println!("move: {times} times; lines and parts of the stream: {counts:?}");
        room::empty()?;
        sh("ip netns del here; ip netns del there; ip netns del peer")
    }

    /// Dumps and restores that fail.
    fn failures(&self, times: u32) -> Result<()> {
        const HOST: &str = "only";
        const ADDRESS: &str = "127.0.0.1";
        sh(&format!("ip netns add {HOST}; ip -n {HOST} link set lo up"))?;
        let refuses = script("refuse", "[ \"$CRTOOLS_SCRIPT_ACTION\" != \"$FAIL\" ]")?;
        let dir = room::fresh("target")?;
        let target = self.server(HOST, ADDRESS, &dir)?;
        let pid = target.pid().to_string();
        let mut client = self.client(HOST, ADDRESS, &dir)?;
        let before = self.surroundings(HOST)?;
        ensure!(before.0.is_empty(), "tables: {:?}", before.0);
        let dump = ["-t", &pid, "--action-script", &refuses];

        let start = Instant::now();
        self.must(
            HOST,
            "dump",
            &room::fresh("images")?,
            &[&dump[..], &["-R"]].concat(),
        )?;
        let undisturbed = start.elapsed();
        let (mut failed, mut done) = (0, 0);
        for time in 0..times {
            let fault = Fault::of(time, times, &["pre-dump", "post-dump"], undisturbed);
            // Who is refused at the end was to die.
            let more = if time % 2 == 0 { &["-R"][..] } else { &[] };
            let more = if fault.may_succeed() { &["-R"] } else { more };
            let images = room::fresh("images")?;
            let words = [&dump[..], more].concat();
            let end = self.call(HOST, &fault.words(), "dump", &images, &words, fault.limit());
            match end? {
                End::Done if fault.may_succeed() => done += 1,
                End::Done => bail!("dump {time}: {fault:?} did not matter"),
                End::Failed(why) => {
                    tracing(&fault, &why);
                    failed += 1;
                }
            }
            let check = goes_on(&dir, &mut client).and_then(|()| {
                let now = self.surroundings(HOST)?;
                ensure!(now == before, "{now:?}, not {before:?}");
                Ok(())
            });
            check.with_context(|| format!("after dump {time} with {fault:?}"))?;
        }
        println!("fail: {times} dumps, {failed} failed, {done} were done before");

        let images = room::fresh("images")?;
        self.must(HOST, "dump", &images, &dump)?;
        target.killed()?;
        room::bury(client.pid()?)?;
        let mut parked = self.surroundings(HOST)?;
        ensure!(
            parked.0.len() == 1 && parked.2 == 0,
            "after the dump: {parked:?}"
        );
        let restore = ["-d", "--action-script", &refuses];
        let (mut failed, mut done) = (0, 0);
        let mut undisturbed = undisturbed;
        for time in 0..times {
            let steps = [
                "pre-restore",
                "setup-namespaces",
                "post-setup-namespaces",
                "post-restore",
            ];
            let fault = Fault::of(time, times, &steps, undisturbed);
            let end = self.call(
                HOST,
                &fault.words(),
                "restore",
                &images,
                &restore,
                fault.limit(),
            );
            let mut complete = match end? {
                End::Done if fault.may_succeed() => true,
                End::Done => bail!("restore {time}: {fault:?} did not matter"),
                End::Failed(why) => {
                    tracing(&fault, &why);
                    false
                }
            };
            // The dying are not gone at once. Who was killed in the end may have been through.
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                room::bury(client.pid()?)?;
                let now = self.surroundings(HOST)?;
                let alone = room::others()? == [client.pid()?];
                if !complete && now == parked && alone {
                    break;
                }
                // The first answer may have been on its way when the server died.
                complete |= now == before
                    && (0..3).all(|_| goes_on(&dir, &mut client).is_ok())
                    && room::others()?.iter().any(|one| one.to_string() == pid);
                if complete {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "after restore {time} with {fault:?}: {now:?}, not {parked:?}; alone: {alone}; the server: {}",
                    last_line(&dir.join("log"))
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            failed += u32::from(!complete);
            done += u32::from(complete);
            // Now and then a good one, or the peer would lose its patience.
            if !complete && time % 20 != 19 {
                continue;
            }
            if !complete {
                let start = Instant::now();
                self.must(HOST, "restore", &images, &restore)
                    .with_context(|| format!("after restore {time} with {fault:?}"))?;
                undisturbed = start.elapsed();
            }
            goes_on(&dir, &mut client)?;
            let now = self.surroundings(HOST)?;
            ensure!(now == before, "after a restore: {now:?}, not {before:?}");
            for entry in std::fs::read_dir(&images)? {
                std::fs::remove_file(entry?.path())?;
            }
            self.must(HOST, "dump", &images, &dump)?;
            room::bury(client.pid()?)?;
            parked = self.surroundings(HOST)?;
        }
        self.must(HOST, "restore", &images, &restore)?;
        goes_on(&dir, &mut client)?;
        println!("fail: {times} restores, {failed} failed, {done} were done before");
        client.end()?;
        room::empty()?;
        sh(&format!("ip netns del {HOST}"))
    }
}

/// Why a command fails is of interest when it fails for another reason than meant.
fn tracing(fault: &Fault, why: &str) {
    if std::env::var_os("XTASK_VERBOSE").is_some() {
        println!("{fault:?}: {why}");
    }
}

/// Something that goes wrong.
#[derive(Debug)]
enum Fault {
    /// An action script refuses.
    Script(String),
    /// So many descriptors are all.
    Descriptors(u32),
    /// Files may have so many bytes.
    Bytes(u32),
    /// The driver is killed.
    Killed(Duration),
}

impl Fault {
    /// One after the other.
    fn of(time: u32, times: u32, steps: &[&str], undisturbed: Duration) -> Self {
        let part = f64::from(time) / f64::from(times.max(1));
        match time % 4 {
            0 => Self::Script(steps[(time / 4) as usize % steps.len()].to_owned()),
            1 => Self::Descriptors(8 + time / 4),
            2 => Self::Bytes(time / 4 * 200),
            _ => Self::Killed(undisturbed.mul_f64(part)),
        }
    }

    /// Whether it may come too late, or be too little.
    fn may_succeed(&self) -> bool {
        !matches!(self, Self::Script(_))
    }

    fn words(&self) -> Vec<String> {
        match self {
            Self::Script(step) => vec!["env".into(), format!("FAIL={step}")],
            Self::Descriptors(most) => vec!["prlimit".into(), format!("--nofile={most}")],
            Self::Bytes(most) => vec!["prlimit".into(), format!("--fsize={most}")],
            Self::Killed(_) => Vec::new(),
        }
    }

    fn limit(&self) -> Option<Duration> {
        match self {
            Self::Killed(moment) => Some(*moment),
            _ => None,
        }
    }
}
