//! Reading and parsing in one step, for the files one wants whole.

use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use crate::{
    Cgroup, Error, Fdinfo, IdRange, Limits, Mount, NsLink, PosixTimer, ProcDir, Stat, Status,
    cgroups, id_map, mountinfo, timers,
};

impl ProcDir {
    /// `stat`.
    pub fn stat(&self) -> Result<Stat, Error> {
        Ok(Stat::parse(&self.read("stat")?)?)
    }

    /// `status`.
    pub fn status(&self) -> Result<Status, Error> {
        Ok(Status::parse(&self.read("status")?)?)
    }

    /// `fdinfo/FD`.
    pub fn fdinfo(&self, fd: RawFd) -> Result<Fdinfo, Error> {
        Ok(Fdinfo::parse(&self.read(&format!("fdinfo/{fd}"))?)?)
    }

    /// `mountinfo`.
    pub fn mountinfo(&self) -> Result<Vec<Mount>, Error> {
        Ok(mountinfo(&self.read("mountinfo")?)?)
    }

    /// `limits`.
    pub fn limits(&self) -> Result<Limits, Error> {
        Ok(Limits::parse(&self.read("limits")?)?)
    }

    /// `timers`.
    pub fn timers(&self) -> Result<Vec<PosixTimer>, Error> {
        Ok(timers(&self.read("timers")?)?)
    }

    /// `cgroup`.
    pub fn cgroups(&self) -> Result<Vec<Cgroup>, Error> {
        Ok(cgroups(&self.read("cgroup")?)?)
    }

    /// `uid_map`.
    pub fn uid_map(&self) -> Result<Vec<IdRange>, Error> {
        Ok(id_map(&self.read("uid_map")?)?)
    }

    /// `gid_map`.
    pub fn gid_map(&self) -> Result<Vec<IdRange>, Error> {
        Ok(id_map(&self.read("gid_map")?)?)
    }

    /// `ns/NAME`, where the name is that of a kind or `pid_for_children`, `time_for_children`.
    pub fn ns(&self, name: &str) -> Result<NsLink, Error> {
        Ok(NsLink::parse(
            self.readlink(&format!("ns/{name}"))?.as_bytes(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;
    use crate::{NsKind, Smaps, Vmas};

    /// Everything this kernel prints about this very process is understood.
    #[test]
    fn ourselves() {
        let me = ProcDir::open(Pid::this()).expect("we live");
        assert_eq!(me.stat().expect("stat").pid, Pid::this());
        assert_eq!(me.status().expect("status").tgid, Pid::this());
        assert!(!me.mountinfo().expect("mountinfo").is_empty());
        assert!(!me.cgroups().expect("cgroup").is_empty());
        assert!(!me.uid_map().expect("uid_map").is_empty());
        me.gid_map().expect("gid_map");
        me.limits().expect("limits");
        me.timers().expect("timers");
        assert_eq!(me.ns("net").expect("ns").kind, NsKind::Net);
        for fd in me.fds().expect("fd") {
            // Other tests close theirs meanwhile.
            if let Err(error @ Error::Malformed(_)) = me.fdinfo(fd) {
                panic!("{error}");
            }
        }
        let maps = me.read("maps").expect("maps");
        assert!(
            Vmas::new(&maps)
                .collect::<Result<Vec<_>, _>>()
                .expect("maps")
                .len()
                > 5
        );
        let smaps = me.read("smaps").expect("smaps");
        let smaps: Vec<_> = Smaps::new(&smaps).collect::<Result<_, _>>().expect("smaps");
        assert!(
            smaps.iter().all(|smap| smap.flags.unknown.is_empty()),
            "a code for the table of VmFlags"
        );
    }
}
