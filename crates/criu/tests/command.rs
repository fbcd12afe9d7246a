//! The `criu` command as its callers see it: words in; output, files and status out.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn criu(dir: &Path, args: &[&str]) -> io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_criu"));
    command
        .args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("CRIU_CONFIG_FILE")
        .output()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_version_is_the_first_line() -> io::Result<()> {
    for flag in ["-V", "--version"] {
        let output = criu(Path::new("/"), &[flag])?;
        assert!(output.status.success());
        assert_eq!(text(&output.stdout).lines().next(), Some("Version: 4.2"));
    }
    Ok(())
}

#[test]
fn help_names_every_option() -> io::Result<()> {
    let output = criu(Path::new("/"), &["--help"])?;
    let help = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty());
    for option in criu_cli::table::all().filter(|option| option.name != "ms") {
        assert!(
            help.contains(&format!("--{}", option.name)),
            "{}",
            option.name
        );
    }
    Ok(())
}

#[test]
fn a_wrong_line_is_status_one_and_one_line() -> io::Result<()> {
    for args in [
        &["--frob"][..],
        &[],
        &["dump", "--ms"],
        &["show"],
        &["check", "--feature", "frob"],
    ] {
        let output = criu(Path::new("/tmp"), args)?;
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let error = text(&output.stderr);
        assert!(
            error.starts_with("Error (criu): ") && error.lines().count() == 1,
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_failed_run_ends_its_log_with_the_failure_and_leaves_a_record() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["images", "work"] {
        std::fs::create_dir(dir.path().join(name))?;
    }
    let args = [
        "restore",
        "-D",
        "images",
        "-W",
        "work",
        "-o",
        "restore.log",
        "-v4",
    ];
    let output = criu(dir.path(), &args)?;
    assert_eq!(output.status.code(), Some(1));
    let log = std::fs::read_to_string(dir.path().join("work/restore.log"))?;
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("(00.0") && last.contains(") Error (criu): "),
        "{last}"
    );
    let error = text(&output.stderr);
    assert!(last.ends_with(error.trim_end()), "{error}");
    assert!(dir.path().join("work/error.json").exists());
    assert!(output.stdout.is_empty());
    Ok(())
}

#[test]
fn without_a_log_file_the_failure_is_said_once() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    for args in [
        &["restore"][..],
        &["restore", "-v0"],
        &["restore", "-o", "log"],
    ] {
        let error = text(&criu(dir.path(), args)?.stderr);
        assert_eq!(
            error.matches("Error (criu)").count(),
            1,
            "{args:?}: {error}"
        );
    }
    Ok(())
}

#[test]
fn the_kernel_is_checked() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let list = text(&criu(dir.path(), &["check", "--feature", "list"])?.stdout);
    assert_eq!(list.split_whitespace().count(), 45);
    let one = criu(dir.path(), &["check", "--feature", "mnt_id"])?;
    assert!(one.status.success(), "{}", text(&one.stderr));
    // What a kernel lacks is not this test's concern; that the answer and the status agree is.
    let all = criu(dir.path(), &["check"])?;
    assert_eq!(
        text(&all.stdout).contains("Looks good."),
        all.status.success()
    );
    assert!(
        !dir.path().join("error.json").exists(),
        "a check leaves nothing behind"
    );
    Ok(())
}

#[test]
fn a_cpu_is_like_itself() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let dump = criu(dir.path(), &["cpuinfo", "dump"])?;
    if dump.status.code() == Some(161) {
        return Ok(()); // The format has no entry for this architecture.
    }
    assert!(dump.status.success(), "{}", text(&dump.stderr));
    assert!(
        criu(dir.path(), &["cpuinfo", "check", "--cpu-cap=all"])?
            .status
            .success()
    );
    Ok(())
}

#[test]
fn only_connections_of_which_nothing_is_said_are_refused() -> io::Result<()> {
    use std::net::{TcpListener, TcpStream};
    let dir = tempfile::tempdir()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let other = TcpStream::connect(listener.local_addr()?)?;
    let ends = [one.local_addr()?, other.local_addr()?].map(|end| end.to_string());
    let stdio = |stream: TcpStream| Stdio::from(std::os::fd::OwnedFd::from(stream));
    let mut child = Command::new("sleep")
        .arg("60")
        .stdin(stdio(one))
        .stdout(stdio(other))
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id().to_string();
    let policy = format!("--tcp-policy=local:{}=close", ends[0]);
    let refused = criu(dir.path(), &["dump", "-t", &pid, &policy]);
    let both = criu(dir.path(), &["dump", "-t", &pid]);
    child.kill()?;
    child.wait()?;
    for (output, known) in [(refused?, true), (both?, false)] {
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert_eq!(!error.contains(&ends[0]), known, "{error}");
        assert!(
            error.contains(&ends[1]) && error.contains("--tcp-policy"),
            "{error}"
        );
    }
    let wrong = criu(dir.path(), &["restore", "--tcp-policy", "*:80=drop"])?;
    let error = text(&wrong.stderr);
    assert!(
        error.contains("--tcp-policy") && error.contains("*:80=drop"),
        "{error}"
    );
    Ok(())
}
