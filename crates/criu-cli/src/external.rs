//! Objects the tree uses but does not own, as `--external` and `--inherit-fd` spell them.
//!
//! Only the outer form is read here, `kind[inside]:name`; what is inside belongs to whoever owns the kind.

use std::path::PathBuf;

use crate::error::Failure;
use crate::typed::{Typed, bad_value, not_yet};

/// One value of `--external`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The sort of object, one of those the verb knows.
    pub kind: &'static str,
    /// What is between the brackets.
    pub inside: String,
    /// What follows the colon, if anything does.
    pub name: Option<String>,
}

/// What a dump can leave outside: `tty[rdev:dev]` `file[mnt_id:inode]` `dev[major/minor]:name` `unix[inode]`
/// `mnt[mountpoint]:name` `mnt[]:ms` `net[inode]:name` `pid[inode]:name`.
pub const DUMPED: &[&str] = &["tty", "file", "dev", "unix", "mnt", "net", "pid"];

/// What a restore can be given: `dev[name]:path` `mnt[name]:path` `veth[inner]:outer@bridge`
/// `macvlan[inner]:outer` `netdev[inner]:original`.
pub const PROVIDED: &[&str] = &["dev", "mnt", "veth", "macvlan", "netdev"];

/// One value of `--inherit-fd`, `fd[N]:KEY`: our descriptor N is what the images call KEY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Our descriptor.
    pub fd: i32,
    /// The name in the images: `tty[..]`, `pipe:[..]`, `socket:[..]`, `file[..]`, a path, or an external name.
    pub key: String,
}

impl External {
    /// Reads one value; `kinds` are those the verb knows.
    pub fn parse(text: &str, kinds: &[&'static str]) -> Result<Self, Failure> {
        let parsed = brackets(text).and_then(|(kind, inside, name)| {
            let kind = kinds.iter().copied().find(|known| *known == kind)?;
            Some(External {
                kind,
                inside: inside.to_owned(),
                name: name.map(str::to_owned),
            })
        });
        parsed.ok_or_else(|| bad_value("external", text.as_ref()))
    }
}

impl Inherited {
    /// Reads one value.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = brackets(text).and_then(|(kind, fd, key)| {
            let fd = fd.parse().ok().filter(|fd| kind == "fd" && *fd >= 0)?;
            Some(Inherited {
                fd,
                key: key?.to_owned(),
            })
        });
        parsed.ok_or_else(|| bad_value("inherit-fd", text.as_ref()))
    }
}

/// The devices among what stays outside, `dev[major/minor]:name`.
pub(crate) fn dumped_devices(external: &[External]) -> Result<Vec<(u32, u32, String)>, Failure> {
    let device = |external: &External| {
        let parsed = external.inside.split_once('/').and_then(|(major, minor)| {
            let name = external.name.clone()?;
            Some((major.parse().ok()?, minor.parse().ok()?, name))
        });
        let text = format!("dev[{}]", external.inside);
        parsed.ok_or_else(|| bad_value("external", text.as_ref()))
    };
    let all = external.iter().filter(|external| external.kind == "dev");
    all.map(device).collect()
}

/// The devices among what the caller provides, `dev[name]:path`; nothing else can be yet.
pub(crate) fn devices(external: &[External]) -> Result<Vec<(String, PathBuf)>, Failure> {
    let device = |external: &External| {
        if external.kind != "dev" {
            return Err(not_yet(&format!("external {}[..]", external.kind)));
        }
        let path = external.name.as_ref().map(PathBuf::from);
        let text = format!("dev[{}]", external.inside);
        let path = path.ok_or_else(|| bad_value("external", text.as_ref()))?;
        Ok((external.inside.clone(), path))
    };
    external.iter().map(device).collect()
}

/// Where to search for watched files: where told, and, if asked for, where programs like to watch.
pub(crate) fn irmap(typed: &Typed) -> Option<Vec<PathBuf>> {
    const USUAL: &[&str] = &[
        "/etc",
        "/var/spool",
        "/var/log",
        "/usr/share/dbus-1/system-services",
        "/var/lib/polkit-1/localauthority",
        "/usr/share/polkit-1/actions",
        "/lib/udev",
    ];
    let mut paths: Vec<PathBuf> = typed.values("irmap-scan-path").map(PathBuf::from).collect();
    if typed.switch("force-irmap", false) {
        paths.extend(USUAL.iter().map(PathBuf::from));
    }
    (!paths.is_empty()).then_some(paths)
}

/// Splits `kind[inside]` or `kind[inside]:name`.
fn brackets(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (kind, rest) = text.split_once('[')?;
    match rest.split_once(']')? {
        (inside, "") => Some((kind, inside, None)),
        (inside, after) => Some((kind, inside, Some(after.strip_prefix(':')?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let tty = External {
            kind: "tty",
            inside: "8803:1d".into(),
            name: None,
        };
        assert_eq!(External::parse("tty[8803:1d]", DUMPED), Ok(tty));
        let veth = External {
            kind: "veth",
            inside: "eth0".into(),
            name: Some("v1@br0".into()),
        };
        assert_eq!(External::parse("veth[eth0]:v1@br0", PROVIDED), Ok(veth));
        let device = External::parse("dev[10/229]:mine", DUMPED).expect("a device");
        assert_eq!(
            dumped_devices(&[device]),
            Ok(vec![(10, 229, "mine".to_owned())])
        );
        let unnamed = External::parse("dev[10/229]", DUMPED).expect("its form is right");
        assert!(dumped_devices(&[unnamed]).is_err());
        let given = External::parse("dev[mine]:/dev/null", PROVIDED).expect("a path");
        assert_eq!(
            devices(&[given]),
            Ok(vec![("mine".to_owned(), PathBuf::from("/dev/null"))])
        );
        for wrong in ["", "tty", "tty[1", "veth[a]:b", "pid[1]x"] {
            assert!(External::parse(wrong, DUMPED).is_err(), "{wrong}");
        }
        let pipe = Inherited {
            fd: 3,
            key: "pipe:[1234]".into(),
        };
        assert_eq!(Inherited::parse("fd[3]:pipe:[1234]"), Ok(pipe));
        assert!(Inherited::parse("fd[-1]:x").is_err() && Inherited::parse("fd[1]").is_err());
    }
}
