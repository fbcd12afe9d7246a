//! Every feature, once: name, who needs it, what for, and who asks.
//!
//! The names of CRIU 4.2 are all there (45 for `--feature`). Its mandatory checks have no names there; ours do.
//! Two features are mandatory here only: our engine chooses pids by clone3(2) and fetches descriptors by pidfd.

use crate::feature::{Class, Feature};
use crate::{files, mm, net, ns, task};

use Class::{Experimental, Extra, Mandatory, Named};

const fn ours(
    name: &'static str,
    class: Class,
    probe: fn() -> crate::Answer,
    needed_for: &'static str,
) -> Feature {
    Feature {
        name,
        class,
        needed_for,
        in_criu: false,
        probe,
    }
}

const fn criu(
    name: &'static str,
    class: Class,
    probe: fn() -> crate::Answer,
    needed_for: &'static str,
) -> Feature {
    Feature {
        name,
        class,
        needed_for,
        in_criu: true,
        probe,
    }
}

/// All features, mandatory ones first.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    ours("map_files",          Mandatory, mm::map_files,             "reaching the files that are mapped"),
    ours("sock_diag",          Mandatory, net::sock_diag,            "describing sockets"),
    ours("ns_last_pid",        Mandatory, task::choose_pid,          "giving tasks their pids back"),
    ours("so_peek_off",        Mandatory, net::peek_off,             "copying what waits in socket queues"),
    ours("kcmp",               Mandatory, task::kcmp,                "telling which tasks share what"),
    ours("prctl_mm_map",       Mandatory, mm::prctl_mm_map,          "setting the boundaries of code, data and stack"),
    ours("fcntl_getown_uids",  Mandatory, files::getown_uids,        "the owners of signals from descriptors"),
    ours("proc_stat",          Mandatory, task::stat,                "the boundaries of code, data and stack"),
    ours("tcp_repair",         Mandatory, net::tcp_repair,           "TCP connections"),
    ours("fdinfo",             Mandatory, files::fdinfo,             "eventfd, signalfd, epoll and inotify"),
    ours("vmsplice",           Mandatory, mm::vmsplice,              "moving memory without copying it"),
    ours("tty",                Mandatory, files::tty,                "terminals"),
    ours("so_get",             Mandatory, net::so_get,               "socket filters and bound devices"),
    ours("ipc",                Mandatory, ns::ipc,                   "giving IPC objects their ids back"),
    ours("rt_tgsigqueueinfo",  Mandatory, task::queue_signal,        "pending signals"),
    ours("peeksiginfo",        Mandatory, task::peek_signal,         "pending signals"),
    ours("special_mremap",     Mandatory, mm::move_vdso,             "putting the vdso where it was"),
    criu("clone3_set_tid",     Mandatory, task::clone3_set_tid,      "choosing a pid when a task is cloned"),
    criu("pidfd_store",        Mandatory, task::pidfd,               "fetching descriptors, and telling a pid that was used again"),
    criu("ns_pid",             Extra,     task::ns_pid,              "the pids of nested namespaces"),
    criu("kcmp_epoll",         Extra,     task::kcmp_epoll,          "epoll on descriptors that were duplicated"),
    criu("seccomp_suspend",    Extra,     task::seccomp_suspend,     "tasks under seccomp"),
    criu("seccomp_filters",    Extra,     task::seccomp_filters,     "tasks under seccomp"),
    criu("get_rseq_conf",      Extra,     task::rseq,                "tasks that use restartable sequences"),
    criu("timer_cr_ids",       Extra,     task::timer_ids,           "giving POSIX timers their ids back at once"),
    criu("loginuid",           Extra,     task::loginuid,            "the audit login id"),
    criu("mnt_id",             Extra,     files::mnt_id,             "telling through which mount a file was opened"),
    criu("timerfd",            Extra,     files::timerfd,            "timerfd"),
    criu("fdinfo_lock",        Extra,     files::fdinfo_lock,        "file locks"),
    criu("openat2",            Extra,     files::openat2,            "opening files of a tree that is not trusted"),
    criu("mem_dirty_track",    Extra,     mm::soft_dirty,            "pre-dump: which memory changes"),
    criu("aio_remap",          Extra,     mm::aio_remap,             "aio rings"),
    criu("can_map_vdso",       Extra,     mm::map_vdso,              "restoring a vdso without moving ours"),
    criu("uffd",               Extra,     mm::uffd,                  "bringing memory on demand"),
    criu("uffd-noncoop",       Extra,     mm::uffd_events,           "the same, for tasks that fork or unmap"),
    criu("memfd_hugetlb",      Extra,     mm::memfd_hugetlb,         "memfds of huge pages"),
    criu("pagemap_scan",       Extra,     mm::pagemap_scan,          "finding pages fast"),
    criu("pagemap_scan_guard_pages", Extra, mm::pagemap_scan_guard,  "guard pages"),
    criu("overlayfs_maps",     Extra,     mm::overlayfs_maps,        "files mapped from overlayfs"),
    criu("tun",                Extra,     net::tun,                  "tun and tap devices"),
    criu("tcp_half_closed",    Extra,     net::tcp_half_closed,      "TCP connections one side has closed"),
    criu("sk_ns",              Extra,     net::socket_ns,            "telling a socket's network namespace"),
    criu("net_diag_raw",       Extra,     net::diag_raw,             "raw sockets"),
    criu("newifindex",         Extra,     net::new_ifindex,          "giving a moved interface its index"),
    criu("network_lock_nftables", Extra,  net::nft_sets,             "blocking packets by nftables"),
    criu("sockopt_buf_lock",   Extra,     net::buf_lock,             "sockets with fixed buffers"),
    criu("ipv6_freebind",      Extra,     net::ipv6_freebind,        "sockets bound to addresses that are not there yet"),
    criu("userns",             Extra,     ns::user,                  "user namespaces"),
    criu("cgroupns",           Extra,     ns::cgroup,                "cgroup namespaces"),
    criu("timens",             Extra,     ns::time,                  "time namespaces"),
    criu("move_mount_set_group", Extra,   ns::move_mount_set_group,  "shared mounts"),
    criu("apparmor_stacking",  Extra,     ns::apparmor,              "tasks in AppArmor namespaces"),
    criu("autofs",             Experimental, ns::autofs,             "autofs mounts"),
    criu("compat_cr",          Experimental, mm::compat,             "32-bit tasks"),
    criu("tun_ns",             Named,     net::tun_ns,               "telling a tun device's network namespace"),
    criu("sk_unix_file",       Named,     net::unix_file,            "the files of bound unix sockets"),
    criu("nsid",               Named,     net::nsid,                 "the ids of network namespaces"),
    criu("link_nsid",          Named,     net::nsid,                 "links whose peer is in another namespace"),
    criu("external_net_ns",    Named,     ns::external_net,          "network namespaces given by the caller"),
    criu("nftables",           Named,     net::nftables,             "nftables rules"),
    criu("has_ipt_legacy",     Named,     net::legacy_iptables,      "rules of the older iptables"),
    criu("breakpoints",        Named,     task::breakpoints,         "stopping tasks at an address without changing their code"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_criu_are_all_there_once() {
        let names: std::collections::BTreeSet<_> =
            FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), FEATURES.len());
        assert_eq!(
            FEATURES.iter().filter(|feature| feature.in_criu).count(),
            45
        );
        assert_eq!(
            FEATURES
                .iter()
                .filter(|feature| feature.class == Mandatory)
                .count(),
            19
        );
    }

    #[test]
    fn every_probe_comes_to_an_end() {
        for feature in FEATURES {
            let answer = feature.probe();
            println!("{:25} {answer:?}", feature.name);
        }
    }
}
