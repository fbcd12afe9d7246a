//! From an initramfs to a system: mounts, modules, the disk as the root.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::modules;

const DISK: &str = "/dev/vda";
const EARLY: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Mounts of a system: source and type, where, data.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("devpts", "/dev/pts", "ptmxmode=666,gid=5,mode=620"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("mqueue", "/dev/mqueue", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
];

/// As much as it takes to speak.
pub(crate) fn early() -> Result<()> {
    make("devtmpfs", "/dev", "mode=755")?;
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(console.as_fd())?;
    dup2_stdout(console.as_fd())?;
    dup2_stderr(console.as_fd())?;
    make("proc", "/proc", "")?;
    make("sysfs", "/sys", "")?;
    setsid().ok();
    Ok(())
}

/// Gets the disk and moves there. Threads of the kernel share our root, and so find modprobe there too.
pub(crate) fn switch() -> Result<()> {
    for name in EARLY {
        // Built in, in some kernels.
        if let Err(error) = modules::load(name) {
            ensure!(
                !Path::new(&format!("/lib/modules/{name}.ko")).exists(),
                "{error:#}"
            );
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !Path::new(DISK).exists() {
        ensure!(Instant::now() < deadline, "no {DISK}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let none = None::<&str>;
    mount(Some(DISK), "/root", Some("ext4"), MsFlags::empty(), none).context(DISK)?;
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (format!("/{name}"), format!("/root/{name}"));
        mount(
            Some(from.as_str()),
            to.as_str(),
            none,
            MsFlags::MS_MOVE,
            none,
        )
        .context(from)?;
    }
    chdir("/root")?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context("move the root")?;
    chroot(".")?;
    chdir("/")?;
    for (kind, place, data) in MOUNTS {
        if place.starts_with("/dev/") {
            fs::create_dir_all(place)?;
        }
        make(kind, place, data)?;
    }
    // Opening it loads the module.
    fs::create_dir_all("/dev/net")?;
    mknod(
        "/dev/net/tun",
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(10, 200),
    )
    .ok();
    nix::unistd::sethostname("zdtm")?;
    let loopback = Command::new("/bin/busybox")
        .args(["ifconfig", "lo", "up"])
        .status();
    ensure!(
        loopback.context("busybox")?.success(),
        "ifconfig lo up failed"
    );
    // As most systems have it; the kernel's own is nobody.
    let everybody = "/proc/sys/net/ipv4/ping_group_range";
    fs::write(everybody, "0 2147483647").context(everybody)?;
    // As most systems have it; the kernel's own is 1024 and 4096.
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 524_288)?;
    Ok(())
}

fn make(kind: &str, place: &str, data: &str) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(data))
        .with_context(|| place.to_owned())
}
