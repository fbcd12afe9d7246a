//! `bench --arch`: the same in a guest, for what another criu cannot do under the kernel of this host.
//!
//! All of it is emulated, so a second there is none of here. What is compared runs in the same guest, in turns, and
//! only the ratios are worth something. The driver is built for speed, as anywhere else, but static.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::disk::{self, Load};
use crate::kernel;
use crate::machine;
use crate::modules::{LATER, Modules};
use crate::peer::Peer;
use crate::qemu::{self, End, Guest};
use crate::{busybox, cross, emulator, guest, initramfs, shell};

/// A case says nothing before it is done.
const SILENCE: Duration = Duration::from_secs(3000);

/// Takes its own options out; what is left is for the `bench` inside.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let mut args = Args::new(words);
    let machine: String = args.value("--arch")?.context("--arch NAME")?;
    let series: Option<String> = args.value("--kernel")?;
    let peer: Option<PathBuf> = args.value("--peer")?;
    let machines = machine::named(&machine)?;
    let [machine] = machines[..] else {
        bail!("one machine at a time");
    };
    let series = guest::series(machine, series.as_deref().unwrap_or("6.1"))?;
    let peer = peer.map(|root| Peer::at(&root, machine)).transpose()?;
    let mut inside: Vec<String> = [
        "xtask",
        "bench",
        "--criu=/zdtm/criu",
        "--workload=/zdtm/workload",
    ]
    .map(str::to_owned)
    .into();
    inside.extend(peer.iter().map(|_| "--peer=/usr/sbin/criu".to_owned()));
    inside.extend(args.rest("bench --arch NAME [OPTION]...")?);

    let built = cross::build_bench(machine)?;
    let kernel = kernel::get(machine, series)?;
    let modules = Modules::read(&kernel.modules, &[initramfs::BOOT, LATER])?;
    let dir = shell::target()?.join("guest/bench");
    std::fs::create_dir_all(&dir)?;
    let disk = disk::make(
        &dir,
        &Load {
            built: &built,
            busybox: &busybox::get(machine)?,
            modules: std::slice::from_ref(&modules),
            known: None,
            peer: peer.as_ref().map(|peer| (peer, machine)),
        },
    )?;
    let guest = Guest {
        machine,
        kernel,
        cpu: machine.cpu.to_owned(),
        picky: emulator::picky(machine, series),
        initramfs: dir.join("initramfs"),
        disk,
        log: dir.join("serial.log"),
        silence: SILENCE,
    };
    initramfs::write(&guest.initramfs, &built.init, &modules, &inside)?;
    let (end, _) = qemu::run(&guest, &mut |line| println!("{line}"))?;
    let is_well = matches!(end, End::Verdict { code: 0, .. });
    ensure!(is_well, "the guest: {end:?}; {}", guest.log.display());
    Ok(())
}
