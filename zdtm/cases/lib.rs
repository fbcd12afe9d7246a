//! The test programs, a file per kernel object, listed here once.
//!
//! To add one, see `zdtm/README.md`: write `AREA/KIND.rs` with a `CASES` table, name it in its area below.

// Assembly of MIPS is not stable yet.
#![cfg_attr(target_arch = "mips64", feature(asm_experimental_arch))]
#![allow(
    unsafe_code,
    reason = "test programs call the kernel raw; each block says why it is sound"
)]

mod bpf {
    mod call;
    pub(crate) mod map;
    pub(crate) mod nested;
    pub(crate) mod pinned;
}
mod cpu {
    #[cfg(target_arch = "aarch64")]
    pub(crate) mod aarch64;
    #[cfg(target_arch = "arm")]
    pub(crate) mod armv7;
    #[cfg(target_arch = "x86_64")]
    pub(crate) mod compat;
    #[cfg(target_arch = "x86_64")]
    pub(crate) mod cpu_cap;
    #[cfg(target_arch = "mips64")]
    pub(crate) mod mips64;
    #[cfg(target_arch = "x86_64")]
    pub(crate) mod rseq;
    #[cfg(target_arch = "x86_64")]
    pub(crate) mod x86_64;
}
mod tree {
    pub(crate) mod group;
    pub(crate) mod ids;
    pub(crate) mod session;
    pub(crate) mod subreaper;
    pub(crate) mod thread_leader;
    pub(crate) mod vfork;
    pub(crate) mod zombie;
}
mod task {
    pub(crate) mod attributes;
    pub(crate) mod blocked;
    pub(crate) mod creds;
    pub(crate) mod futexes;
    pub(crate) mod names;
    pub(crate) mod pending;
    pub(crate) mod sched;
    pub(crate) mod seccomp;
    pub(crate) mod signals;
    pub(crate) mod stopped;
    pub(crate) mod timers;
}
mod ipc {
    pub(crate) mod mqueue;
    pub(crate) mod msg;
    pub(crate) mod sem;
    pub(crate) mod shm;
}
mod mm {
    pub(crate) mod anon;
    pub(crate) mod file;
    pub(crate) mod flags;
    pub(crate) mod hugetlb;
    pub(crate) mod layout;
    pub(crate) mod shared;
    pub(crate) mod vdso;
}
mod files {
    pub(crate) mod epoll;
    pub(crate) mod eventfd;
    pub(crate) mod external;
    pub(crate) mod fanotify;
    pub(crate) mod fifo;
    pub(crate) mod ghost;
    pub(crate) mod inotify;
    pub(crate) mod io_uring;
    pub(crate) mod locks;
    pub(crate) mod memfd;
    pub(crate) mod ns_file;
    pub(crate) mod pidfd;
    pub(crate) mod pipe;
    pub(crate) mod place;
    pub(crate) mod policy;
    pub(crate) mod refused;
    pub(crate) mod regular;
    pub(crate) mod shared_table;
    pub(crate) mod signalfd;
    pub(crate) mod special;
    pub(crate) mod table;
    pub(crate) mod timerfd;
    pub(crate) mod tty;
}

mod time {
    pub(crate) mod clocks;
}

mod net {
    pub(crate) mod netlink;
    pub(crate) mod outsider;
    pub(crate) mod packet;
    pub(crate) mod packet_ring;
    pub(crate) mod raw;
    pub(crate) mod tcp;
    pub(crate) mod tcp_listen;
    pub(crate) mod tcp_newcomers;
    pub(crate) mod tcp_options;
    pub(crate) mod tcp_policy;
    pub(crate) mod tcp_queues;
    pub(crate) mod tcp_signed;
    pub(crate) mod tcp_states;
    pub(crate) mod udp;
    pub(crate) mod unix_creds;
    pub(crate) mod unix_dgram;
    pub(crate) mod unix_external;
    pub(crate) mod unix_options;
    pub(crate) mod unix_rights;
    pub(crate) mod unix_stream;
}

use zdtm::Area;

/// Every case, by area.
pub static AREAS: &[Area] = &[
    Area {
        name: "bpf",
        files: &[bpf::map::CASES, bpf::nested::CASES, bpf::pinned::CASES],
    },
    Area {
        name: "cpu",
        files: &[
            #[cfg(target_arch = "aarch64")]
            cpu::aarch64::CASES,
            #[cfg(target_arch = "arm")]
            cpu::armv7::CASES,
            #[cfg(target_arch = "mips64")]
            cpu::mips64::CASES,
            #[cfg(target_arch = "x86_64")]
            cpu::compat::CASES,
            #[cfg(target_arch = "x86_64")]
            cpu::cpu_cap::CASES,
            #[cfg(target_arch = "x86_64")]
            cpu::rseq::CASES,
            #[cfg(target_arch = "x86_64")]
            cpu::x86_64::CASES,
        ],
    },
    Area {
        name: "tree",
        files: &[
            tree::group::CASES,
            tree::ids::CASES,
            tree::session::CASES,
            tree::subreaper::CASES,
            tree::thread_leader::CASES,
            tree::vfork::CASES,
            tree::zombie::CASES,
        ],
    },
    Area {
        name: "task",
        files: &[
            task::attributes::CASES,
            task::blocked::CASES,
            task::creds::CASES,
            task::futexes::CASES,
            task::names::CASES,
            task::pending::CASES,
            task::sched::CASES,
            task::seccomp::CASES,
            task::signals::CASES,
            task::stopped::CASES,
            task::timers::CASES,
        ],
    },
    Area {
        name: "ipc",
        files: &[
            ipc::mqueue::CASES,
            ipc::msg::CASES,
            ipc::sem::CASES,
            ipc::shm::CASES,
        ],
    },
    Area {
        name: "mm",
        files: &[
            mm::anon::CASES,
            mm::file::CASES,
            mm::flags::CASES,
            mm::hugetlb::CASES,
            mm::layout::CASES,
            mm::shared::CASES,
            mm::vdso::CASES,
        ],
    },
    Area {
        name: "files",
        files: &[
            files::epoll::CASES,
            files::eventfd::CASES,
            files::external::CASES,
            files::fanotify::CASES,
            files::fifo::CASES,
            files::ghost::CASES,
            files::inotify::CASES,
            files::io_uring::CASES,
            files::locks::CASES,
            files::memfd::CASES,
            files::ns_file::CASES,
            files::pidfd::CASES,
            files::pipe::CASES,
            files::place::CASES,
            files::policy::CASES,
            files::refused::CASES,
            files::regular::CASES,
            files::signalfd::CASES,
            files::special::CASES,
            files::shared_table::CASES,
            files::table::CASES,
            files::timerfd::CASES,
            files::tty::CASES,
        ],
    },
    Area {
        name: "time",
        files: &[time::clocks::CASES],
    },
    Area {
        name: "net",
        files: &[
            net::netlink::CASES,
            net::packet::CASES,
            net::packet_ring::CASES,
            net::raw::CASES,
            net::tcp::CASES,
            net::tcp_listen::CASES,
            net::tcp_newcomers::CASES,
            net::tcp_options::CASES,
            net::tcp_policy::CASES,
            net::tcp_queues::CASES,
            net::tcp_signed::CASES,
            net::tcp_states::CASES,
            net::udp::CASES,
            net::unix_creds::CASES,
            net::unix_dgram::CASES,
            net::unix_external::CASES,
            net::unix_options::CASES,
            net::unix_rights::CASES,
            net::unix_stream::CASES,
        ],
    },
];
