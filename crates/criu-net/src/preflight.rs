//! What can be said of connections before anybody is stopped.

use std::collections::HashSet;

use criu_kind::{Error, Result, Subject};
use criu_proc::ProcDir;
use nix::unistd::Pid;

use crate::connections::policy::{Policies, REMEDY};
use crate::sockets::inet::diag::{InetInfo, InetSockets};
use crate::sockets::tcp::state::{self, LISTEN};

/// Refuses connections of these processes, each with its descriptor, of which nobody has said what becomes of them.
pub fn refuse_connections(pids: &[Pid], policies: &Policies) -> Result<()> {
    let is_connection = |info: &InetInfo| {
        let is_one = info.state != LISTEN && info.remote.port() != 0;
        is_one && !policies.is_known(&info.local, &info.remote)
    };
    // Most processes have no socket, and the kernel walks through a large table for the answer.
    let mut connections = None;
    let mut refused = Vec::new();
    let mut seen = HashSet::new();
    for pid in pids {
        // Who has ended meanwhile has no connection.
        let Ok(process) = ProcDir::open(*pid) else {
            continue;
        };
        let comm = process.stat().map(|stat| stat.comm).unwrap_or_default();
        for fd in process.fds().unwrap_or_default() {
            let Ok(link) = process.readlink(&format!("fd/{fd}")) else {
                continue;
            };
            let link = link.to_string_lossy().into_owned();
            let number = link
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            let all = match &mut connections {
                Some(all) => all,
                none => {
                    let all = InetSockets::of(&[libc::IPPROTO_TCP])?;
                    // Whoever has them: thousands of descriptors need not be looked at for none.
                    if !all.any(is_connection) {
                        return Ok(());
                    }
                    none.insert(all)
                }
            };
            let Some(info) = all.get(inode) else { continue };
            if !is_connection(info) || !seen.insert(inode) {
                continue;
            }
            let (local, remote) = (info.local, info.remote);
            let fact = format!(
                "a TCP connection, {local} - {remote} ({})",
                state::name(info.state)
            );
            let error = Error::unsupported(fact, REMEDY);
            let error = within(
                error,
                Subject::Fd {
                    fd,
                    link: link.clone(),
                },
            );
            let comm = String::from_utf8_lossy(&comm).into_owned();
            refused.push(within(
                error,
                Subject::Task {
                    pid: pid.as_raw(),
                    comm,
                },
            ));
        }
    }
    Error::all(refused)
}

fn within(error: Error, subject: Subject) -> Error {
    Error::Within {
        subject,
        source: Box::new(error),
    }
}
