//! `criu cpuinfo`: what the CPU can do, written down, and compared with the CPU of another host. Dump and restore do the
//! same with `--cpu-cap`.
//!
//! Without it nothing is compared but what is certain: registers that are in use and that this CPU has not.

use std::fs;
use std::path::Path;

use criu_image::desc::CPUINFO;
use criu_image::pb::CpuinfoEntry;
use criu_image::{ImageId, ImageReader, ImageWriter, Store, StoreExt};
use criu_tracee::Native;
use criu_tracee::arch::{Arch, CoreImage, CpuChecks};

use crate::error::{Failure, Kind};
use crate::options::{CpuCap, CpuinfoOptions};

/// The status for a machine whose abilities CRIU's format cannot hold: -ENOTSUP, as a byte.
const NOT_SUPPORTED: u8 = 161;

/// Does `cpuinfo dump` or `cpuinfo check`.
pub fn run(options: &CpuinfoOptions, images: &Path) -> Result<(), Failure> {
    let here = here()?;
    let path = images.join(CPUINFO.file_name(ImageId::Single));
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::from_chain("cpuinfo", error).object(path.display())
    };
    if !options.check {
        let mut writer = ImageWriter::new(CPUINFO, CPUINFO.file_name(ImageId::Single), Vec::new())
            .map_err(|error| failed(&error))?;
        writer.write(&here).map_err(|error| failed(&error))?;
        let bytes = writer.finish().map_err(|error| failed(&error))?;
        return fs::write(&path, bytes).map_err(|error| failed(&error));
    }
    let bytes = fs::read(&path).map_err(|error| failed(&error))?;
    let name = CPUINFO.file_name(ImageId::Single);
    let reader = ImageReader::new(CPUINFO, name, bytes).map_err(|error| failed(&error))?;
    let written = reader
        .read_only::<CpuinfoEntry>()
        .map_err(|error| failed(&error))?;
    // To check nothing is no check.
    let nothing = options.cpu_cap
        == CpuCap {
            cpu: false,
            fpu: false,
            instructions: false,
            image: false,
        };
    let cap = if nothing {
        CpuCap {
            cpu: true,
            fpu: true,
            instructions: true,
            image: true,
        }
    } else {
        options.cpu_cap
    };
    compare(&written.message, &here, cap)
}

/// With a dump: what this CPU can do, if the option and the format want it.
pub(crate) fn of_dump(cap: CpuCap) -> Result<Option<CpuinfoEntry>, Failure> {
    let described = || {
        Native::describe_cpu(&criu_tracee::identify).map_err(|error| unsupported(error.to_string()))
    };
    if cap.image { described() } else { Ok(None) }
}

/// With a restore: whether this CPU can do what the option wants compared.
pub(crate) fn check(store: &dyn Store, cap: CpuCap) -> Result<(), Failure> {
    let Some(here) = of_dump(cap)? else {
        return Ok(());
    };
    let written = store
        .entries::<CpuinfoEntry>(CPUINFO, ())
        .map_err(|error| Failure::from_chain("cpuinfo", &error))?;
    match written.as_deref() {
        Some([written]) => compare(&written.message, &here, cap),
        Some(_) => Err(Failure::new(
            Kind::Corrupt,
            "cpuinfo",
            "cpuinfo.img has not one entry",
        )),
        None => Err(
            Failure::new(Kind::Incompatible, "cpuinfo", "cpuinfo.img is missing")
                .remedy("dump with --cpu-cap too, or restore without"),
        ),
    }
}

fn unsupported(why: String) -> Failure {
    Failure::new(Kind::Unsupported, "cpuinfo", why)
}

/// What this CPU can do.
pub fn here() -> Result<CpuinfoEntry, Failure> {
    Native::describe_cpu(&criu_tracee::identify)
        .map_err(|error| unsupported(error.to_string()))?
        .ok_or_else(|| {
            let why = format!("the format has no entry for the CPUs of {}", Native::NAME);
            unsupported(why).exits(NOT_SUPPORTED)
        })
}

/// Whether a task from a CPU like `written` can run `here`; the refusal names all that is in the way.
pub fn compare(written: &CpuinfoEntry, here: &CpuinfoEntry, cap: CpuCap) -> Result<(), Failure> {
    let checks = CpuChecks {
        exact: cap.cpu,
        fpu: cap.fpu,
        instructions: cap.instructions,
    };
    let differences = Native::compare_cpu(written, here, checks)
        .map_err(|error| Failure::new(Kind::Corrupt, "cpuinfo", error.to_string()))?;
    if differences.is_empty() {
        return Ok(());
    }
    let text = format!("this CPU is not enough: {}", differences.join(", "));
    Err(Failure::new(Kind::Incompatible, "cpuinfo", text).remedy("--cpu-cap says what must match"))
}
