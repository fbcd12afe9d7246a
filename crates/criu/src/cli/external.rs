//! Objects the tree uses but does not own, as `--external` and `--inherit-fd` spell them.

use crate::error::Failure;

/// What `--external` of a dump names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum External {
    /// `tty[rdev:dev]`: a terminal.
    Tty {
        /// The device it is.
        rdev: u64,
        /// The device its node is on.
        dev: u64,
    },
    /// `file[mnt_id:inode]`: an open file.
    File {
        /// The mount it was opened through.
        mount: u64,
        /// Its inode.
        inode: u64,
    },
    /// `dev[major/minor]:name`: a block device under a mount.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Its name in the images.
        name: String,
    },
    /// `unix[inode]`: a socket.
    Unix {
        /// Its inode.
        inode: u64,
    },
    /// `mnt[mountpoint]:name`: a bind mount.
    Mount {
        /// Where it is mounted.
        mountpoint: String,
        /// Its name in the images.
        name: String,
    },
    /// `mnt[]` with `:m` and `:s`: every mount that looks external.
    AutoMounts {
        /// Also mounts that receive from the outside.
        masters: bool,
        /// Also mounts shared with the outside.
        sharing: bool,
    },
    /// `net[inode]:name`: a network namespace.
    NetNs {
        /// Its inode.
        inode: u64,
        /// Its name in the images.
        name: String,
    },
    /// `pid[inode]:name`: a pid namespace.
    PidNs {
        /// Its inode.
        inode: u64,
        /// Its name in the images.
        name: String,
    },
}

/// What `--external` of a restore provides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provided {
    /// `dev[name]:path`.
    Device {
        /// Its name in the images.
        name: String,
        /// Where it is here.
        path: String,
    },
    /// `mnt[name]:path`.
    Mount {
        /// Its name in the images.
        name: String,
        /// Where it is here.
        path: String,
    },
    /// `veth[inner]:outer@bridge`.
    Veth {
        /// Its name inside.
        inner: String,
        /// Its name outside.
        outer: String,
        /// The bridge the outer end joins.
        bridge: Option<String>,
    },
    /// `macvlan[inner]:outer`.
    Macvlan {
        /// Its name inside.
        inner: String,
        /// Its name outside.
        outer: String,
    },
    /// `netdev[inner]:original`.
    NetDevice {
        /// Its name inside.
        inner: String,
        /// Its name here.
        original: String,
    },
}

/// `--inherit-fd fd[N]:KEY`: our descriptor N is what the images call KEY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Our descriptor.
    pub fd: i32,
    /// The name in the images: `tty[..]`, `pipe:[..]`, `socket:[..]`, `file[..]`, a path, or an external name.
    pub key: String,
}

impl External {
    /// Reads one value of `--external`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        Self::try_parse(text).ok_or_else(|| refuse("external", text))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let (kind, inside, after) = brackets(text)?;
        let name = || after.filter(|name| !name.is_empty()).map(str::to_owned);
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        Some(match kind {
            "tty" => {
                let (rdev, dev) = inside.split_once(':')?;
                External::Tty {
                    rdev: hex(rdev)?,
                    dev: hex(dev)?,
                }
            }
            "file" => {
                let (mount, inode) = inside.split_once(':')?;
                External::File {
                    mount: hex(mount)?,
                    inode: hex(inode)?,
                }
            }
            "dev" => {
                let (major, minor) = inside.split_once('/')?;
                External::Device {
                    major: major.parse().ok()?,
                    minor: minor.parse().ok()?,
                    name: name()?,
                }
            }
            "unix" => External::Unix {
                inode: inside.parse().ok()?,
            },
            "mnt" if inside.is_empty() => {
                let flags = after.unwrap_or_default();
                flags
                    .chars()
                    .all(|flag| "ms".contains(flag))
                    .then_some(())?;
                External::AutoMounts {
                    masters: flags.contains('m'),
                    sharing: flags.contains('s'),
                }
            }
            "mnt" => External::Mount {
                mountpoint: inside.to_owned(),
                name: name()?,
            },
            "net" => External::NetNs {
                inode: inside.parse().ok()?,
                name: name()?,
            },
            "pid" => External::PidNs {
                inode: inside.parse().ok()?,
                name: name()?,
            },
            _ => return None,
        })
    }
}

impl Provided {
    /// Reads one value of `--external`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        Self::try_parse(text).ok_or_else(|| refuse("external", text))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let (kind, inside, after) = brackets(text)?;
        let (name, value) = (inside.to_owned(), after?.to_owned());
        Some(match kind {
            "dev" => Provided::Device { name, path: value },
            "mnt" => Provided::Mount { name, path: value },
            "macvlan" => Provided::Macvlan {
                inner: name,
                outer: value,
            },
            "netdev" => Provided::NetDevice {
                inner: name,
                original: value,
            },
            "veth" => match value.split_once('@') {
                Some((outer, bridge)) => Provided::Veth {
                    inner: name,
                    outer: outer.to_owned(),
                    bridge: Some(bridge.to_owned()),
                },
                None => Provided::Veth {
                    inner: name,
                    outer: value,
                    bridge: None,
                },
            },
            _ => return None,
        })
    }
}

impl Inherited {
    /// Reads one value of `--inherit-fd`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = brackets(text)
            .filter(|parts| parts.0 == "fd")
            .and_then(|(_, fd, key)| Some((fd.parse().ok()?, key?)));
        let (fd, key) = parsed
            .filter(|(fd, key)| *fd >= 0 && !key.is_empty())
            .ok_or_else(|| refuse("inherit-fd", text))?;
        Ok(Inherited {
            fd,
            key: key.to_owned(),
        })
    }
}

/// Splits `kind[inside]` or `kind[inside]:after`.
fn brackets(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (kind, rest) = text.split_once('[')?;
    let (inside, after) = rest.split_once(']')?;
    match after {
        "" => Some((kind, inside, None)),
        _ => Some((kind, inside, Some(after.strip_prefix(':')?))),
    }
}

fn refuse(option: &str, text: &str) -> Failure {
    super::typed::bad_value(option, text.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dump_leaves_outside() {
        let tty = External::Tty {
            rdev: 0x8803,
            dev: 0x1d,
        };
        assert_eq!(External::try_parse("tty[8803:1d]"), Some(tty));
        let device = External::Device {
            major: 8,
            minor: 1,
            name: "root".into(),
        };
        assert_eq!(External::try_parse("dev[8/1]:root"), Some(device));
        assert_eq!(
            External::try_parse("mnt[]:ms"),
            Some(External::AutoMounts {
                masters: true,
                sharing: true
            })
        );
        let net = External::NetNs {
            inode: 4026531840,
            name: "extRootNetNS".into(),
        };
        assert_eq!(
            External::try_parse("net[4026531840]:extRootNetNS"),
            Some(net)
        );
        for wrong in [
            "",
            "tty",
            "tty[1]",
            "unix[x]",
            "mnt[/a]",
            "mnt[]:q",
            "net[1]",
            "what[1]:x",
            "pid[1]x",
        ] {
            assert_eq!(External::try_parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_restore_provides() {
        let veth = Provided::Veth {
            inner: "eth0".into(),
            outer: "v1".into(),
            bridge: Some("br0".into()),
        };
        assert_eq!(Provided::try_parse("veth[eth0]:v1@br0"), Some(veth));
        let fd = Inherited::parse("fd[3]:pipe:[1234]").map_err(|failure| failure.to_string());
        assert_eq!(
            fd,
            Ok(Inherited {
                fd: 3,
                key: "pipe:[1234]".into()
            })
        );
        assert!(Inherited::parse("fd[-1]:x").is_err() && Inherited::parse("fd[1]").is_err());
    }
}
