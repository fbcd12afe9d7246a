//! Packages of other architectures and releases, by an apt whose state is ours: it checks signatures and sums as always,
//! and the machine's own packages and lists stay as they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{cache, shell, sources};

/// Lists younger than this are not fetched again.
const FRESH: Duration = Duration::from_secs(3600);

/// The packages of one Debian architecture.
pub(crate) struct Apt {
    dir: PathBuf,
    architecture: String,
    /// Held as long as we work with it: apt would fail where we can wait.
    _turn: File,
}

impl Apt {
    /// With the current lists.
    pub(crate) fn open(architecture: &str) -> Result<Self> {
        let needed = [("apt-get", "apt"), ("dpkg", "dpkg")];
        shell::need(&needed)?;
        let dir = cache::dir()?.join("apt").join(architecture);
        let apt = Self {
            _turn: cache::turn(&format!("apt-{architecture}"))?,
            dir,
            architecture: architecture.to_owned(),
        };
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(apt.dir.join(sub))?;
        }
        fs::write(apt.dir.join("status"), "")?;
        let etc = std::env::var_os("APT_ETC").map_or("/etc/apt".into(), PathBuf::from);
        fs::write(apt.dir.join("etc/our.sources"), sources::ours(&etc)?)?;
        fs::write(apt.dir.join("etc/preferences"), preferences())?;
        let stamp = apt.dir.join("updated");
        let age = |path: &Path| {
            let time = path.metadata().and_then(|meta| meta.modified()).ok()?;
            SystemTime::now().duration_since(time).ok()
        };
        if age(&stamp).is_none_or(|age| age > FRESH) {
            // A suite that lacks the architecture is a warning to apt, and none of our business.
            eprintln!("package lists of {architecture}");
            match apt.get(&["-qq", "update"], &apt.dir, false) {
                Ok(()) => fs::write(&stamp, "")?,
                // One list may be missing or in the middle of a change; what is wanted may be in another.
                Err(error) => eprintln!("{error:#}"),
            }
        }
        Ok(apt)
    }

    /// Names of packages that start like this.
    pub(crate) fn names(&self, start: &str) -> Result<Vec<String>> {
        let text = self.ask(&["pkgnames", start])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = self.ask(&["madison", package])?;
        let column = |line: &str| Some(line.split('|').nth(1)?.trim().to_owned());
        let mut versions: Vec<String> = text.lines().filter_map(column).collect();
        versions.dedup();
        Ok(versions)
    }

    /// The version that is the best for this machine.
    pub(crate) fn candidate(&self, package: &str) -> Result<String> {
        let text = self.ask(&["policy", package])?;
        let version = |line: &str| Some(line.trim().strip_prefix("Candidate: ")?.to_owned());
        let found = text.lines().find_map(version);
        found
            .with_context(|| format!("no {package} in the package lists; is the mirror reachable?"))
    }

    /// The names of what a package depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.ask(&["depends", "--important", package])?;
        let name = |line: &str| Some(line.trim().strip_prefix("Depends: ")?.to_owned());
        Ok(text.lines().filter_map(name).collect())
    }

    /// Unpacks packages, named with or without `=VERSION`, below `into`. Nothing of theirs is run.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let files = into.with_extension("debs");
        fs::create_dir_all(&files)?;
        let mut words = vec!["-qq", "download"];
        words.extend(packages.iter().map(String::as_str));
        eprintln!("fetching {}", packages.join(" "));
        self.get(&words, &files, false)?;
        unpack_all(&files, into)
    }

    /// Unpacks packages, of a release, with all they need and this machine lacks.
    pub(crate) fn unpack_whole(&self, packages: &[&str], release: &str, into: &Path) -> Result<()> {
        let archives = into.with_extension("debs");
        fs::create_dir_all(archives.join("partial"))?;
        let option = format!("Dir::Cache::Archives={}", archives.display());
        let mut words = vec!["-qq", "-y", "--no-install-recommends", "--download-only"];
        words.extend(["-o", &option, "-t", release, "install"]);
        words.extend(packages);
        eprintln!("fetching {} of {release}", packages.join(" "));
        self.get(&words, &self.dir, true)?;
        unpack_all(&archives, into)
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.command("apt-cache", false).args(words).output()?;
        if !output.status.success() {
            bail!("apt-cache {}: {}", words.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn get(&self, words: &[&str], place: &Path, installed: bool) -> Result<()> {
        let output = self
            .command("apt-get", installed)
            .args(words)
            .current_dir(place)
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let error = text.lines().find(|line| line.starts_with("E:"));
            bail!(
                "apt-get {} for {}: {}",
                words.join(" "),
                self.architecture,
                error.unwrap_or("failed")
            );
        }
        Ok(())
    }

    /// `installed`: counting on what this machine has, instead of on nothing.
    fn command(&self, program: &str, installed: bool) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        let mut options = vec![
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={dir}/etc"),
            format!("Dir::Etc::Preferences={dir}/etc/preferences"),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ];
        if !installed {
            options.push(format!("Dir::State::Status={dir}/status"));
        }
        for option in options {
            command.args(["-o", &option]);
        }
        command
    }
}

/// What this machine's own release has goes before what others have.
fn preferences() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("bookworm");
    ["", "-security"]
        .map(|part| format!("Package: *\nPin: release n={name}{part}\nPin-Priority: 600\n"))
        .join("\n")
}

fn unpack_all(files: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(files)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let (program, words) = ("dpkg", ["-x".as_ref(), path.as_os_str(), into.as_os_str()]);
            let output = Command::new(program).args(words).output()?;
            if !output.status.success() {
                bail!("{}: dpkg -x: {}", path.display(), output.status);
            }
        }
    }
    fs::remove_dir_all(files).with_context(|| files.display().to_string())
}
