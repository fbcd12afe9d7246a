//! The programs of `cargo xtask programs`.

/// A program. In words, `{src}` is `zdtm/programs`, `{once}` a directory for all times, `{port}` a free TCP port.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Commands it cannot do without, and the Debian packages they come in.
    pub(crate) needs: &'static [(&'static str, &'static str)],
    /// For dump and restore.
    pub(crate) options: &'static [&'static str],
    /// Run once, before all times.
    pub(crate) prepare: &'static str,
    /// The program.
    pub(crate) run: &'static str,
    /// Run beside it, until it is fit to be dumped.
    pub(crate) settle: &'static str,
    /// Run beside it from before the first dump to the end, outside of the tree; told to end by SIGTERM, it must have
    /// found all right.
    pub(crate) client: &'static str,
    /// Run when it has ended.
    pub(crate) check: &'static str,
    /// What it exits with when it is told to end.
    pub(crate) exit: i32,
    /// What grows or changes while it works.
    pub(crate) progress: &'static str,
    /// What it leaves.
    pub(crate) result: &'static str,
}

const PLAIN: Program = Program {
    name: "",
    needs: &[],
    options: &[],
    prepare: "",
    run: "",
    settle: "",
    client: "",
    check: "",
    exit: 0,
    progress: "progress",
    result: "result",
};

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "python",
        needs: &[("python3", "python3")],
        run: "{python} {src}/hash.py run",
        check: "{python} {src}/hash.py check",
        ..PLAIN
    },
    Program {
        name: "redis",
        needs: &[
            ("redis-server", "redis-server"),
            ("redis-cli", "redis-tools"),
        ],
        prepare: "bash {src}/redis.sh prepare {port} {once}/seed.rdb",
        run: "bash {src}/redis.sh run {port} {once}/seed.rdb",
        settle: "bash {src}/redis.sh settle {port}",
        check: "bash {src}/redis.sh check {port}",
        // It works for clients only, and has none.
        progress: "",
        result: "dump.rdb",
        ..PLAIN
    },
    Program {
        name: "sqlite",
        needs: &[("python3", "python3")],
        options: &["--file-locks"],
        run: "{python} {src}/wal.py run",
        check: "{python} {src}/wal.py check",
        ..PLAIN
    },
    Program {
        name: "mariadb",
        needs: &[("python3", "python3"), ("mariadbd", "mariadb-server-core")],
        options: &["--file-locks", "--ghost-limit=64M"],
        run: "{python} {src}/mariadb.py run",
        check: "{python} {src}/mariadb.py check",
        ..PLAIN
    },
    Program {
        name: "shell",
        needs: &[("bash", "bash"), ("sed", "sed")],
        run: "bash {src}/pipeline.sh run",
        check: "bash {src}/pipeline.sh check",
        ..PLAIN
    },
    Program {
        name: "go",
        needs: &[("go", "golang-go")],
        prepare: "go build -o {once}/hash-go {src}/hash.go",
        run: "{once}/hash-go run",
        check: "{once}/hash-go check",
        ..PLAIN
    },
    Program {
        name: "java",
        needs: &[
            ("javac", "openjdk-17-jdk-headless"),
            ("java", "openjdk-17-jre-headless"),
        ],
        prepare: "javac -d {once} {src}/Hash.java",
        // Without the file in /tmp that it shares with everybody.
        run: "java -XX:-UsePerfData -Xmx64m -cp {once} Hash run",
        check: "java -XX:-UsePerfData -Xmx64m -cp {once} Hash check",
        // 128 and SIGTERM.
        exit: 143,
        ..PLAIN
    },
    Program {
        name: "nio",
        needs: &[
            ("javac", "openjdk-17-jdk-headless"),
            ("java", "openjdk-17-jre-headless"),
        ],
        prepare: "javac -d {once} {src}/Nio.java",
        run: "java -XX:-UsePerfData -Xmx64m -cp {once} Nio run",
        check: "java -XX:-UsePerfData -Xmx64m -cp {once} Nio check",
        exit: 143,
        ..PLAIN
    },
    Program {
        name: "node",
        needs: &[("node", "nodejs")],
        run: "node {src}/workers.js run",
        check: "node {src}/workers.js check",
        ..PLAIN
    },
    Program {
        name: "terminal",
        needs: &[("python3", "python3"), ("bash", "bash")],
        run: "{python} {src}/terminal.py run",
        check: "{python} {src}/terminal.py check",
        ..PLAIN
    },
    Program {
        name: "tmux",
        needs: &[("tmux", "tmux"), ("vim", "vim")],
        run: "bash {src}/tmux.sh run",
        settle: "bash {src}/tmux.sh settle",
        check: "bash {src}/tmux.sh check",
        result: "progress",
        ..PLAIN
    },
    Program {
        name: "screen",
        needs: &[("screen", "screen"), ("vim", "vim")],
        run: "bash {src}/screen.sh run",
        settle: "bash {src}/screen.sh settle",
        check: "bash {src}/screen.sh check",
        exit: 1,
        result: "progress",
        ..PLAIN
    },
    Program {
        name: "postgres",
        needs: &[("python3", "python3"), ("psql", "postgresql")],
        run: "{python} {src}/postgres.py run",
        check: "{python} {src}/postgres.py check",
        ..PLAIN
    },
    Program {
        name: "dbus",
        needs: &[("python3", "python3"), ("dbus-daemon", "dbus-daemon")],
        run: "{python} {src}/dbus.py run",
        check: "{python} {src}/dbus.py check",
        ..PLAIN
    },
    Program {
        name: "follow",
        needs: &[("bash", "bash"), ("inotifywait", "inotify-tools")],
        run: "bash {src}/follow.sh run",
        check: "bash {src}/follow.sh check",
        ..PLAIN
    },
    Program {
        name: "redis-tcp",
        needs: &[("python3", "python3"), ("redis-server", "redis-server")],
        options: &["--tcp-established"],
        run: "{python} {src}/servers.py run redis {port}",
        settle: "{python} {src}/servers.py settle redis {port}",
        client: "{python} {src}/servers.py client redis {port}",
        ..PLAIN
    },
    Program {
        name: "memcached-tcp",
        needs: &[("python3", "python3"), ("memcached", "memcached")],
        options: &["--tcp-established"],
        run: "{python} {src}/servers.py run memcached {port}",
        settle: "{python} {src}/servers.py settle memcached {port}",
        client: "{python} {src}/servers.py client memcached {port}",
        ..PLAIN
    },
    Program {
        name: "nginx-tcp",
        needs: &[("python3", "python3"), ("nginx", "nginx-core")],
        options: &["--tcp-established"],
        run: "{python} {src}/servers.py run nginx {port}",
        settle: "{python} {src}/servers.py settle nginx {port}",
        client: "{python} {src}/servers.py client nginx {port}",
        ..PLAIN
    },
    Program {
        name: "postgres-tcp",
        needs: &[
            ("python3", "python3"),
            ("psql", "postgresql"),
            ("pgbench", "postgresql-contrib"),
        ],
        options: &["--tcp-established"],
        run: "{python} {src}/servers.py run postgres {port}",
        settle: "{python} {src}/servers.py settle postgres {port}",
        client: "{python} {src}/servers.py client postgres {port}",
        ..PLAIN
    },
    Program {
        name: "node-tcp",
        needs: &[("python3", "python3"), ("node", "nodejs")],
        options: &["--tcp-established"],
        run: "node {src}/counter.js {port}",
        settle: "{python} {src}/servers.py settle node {port}",
        client: "{python} {src}/servers.py client node {port}",
        ..PLAIN
    },
    Program {
        name: "java-tcp",
        needs: &[
            ("javac", "openjdk-17-jdk-headless"),
            ("java", "openjdk-17-jre-headless"),
        ],
        options: &["--tcp-established"],
        run: "java -XX:-UsePerfData -Xmx64m -cp {once} Counter {port}",
        settle: "{python} {src}/servers.py settle java {port}",
        client: "{python} {src}/servers.py client java {port}",
        prepare: "javac -d {once} {src}/Counter.java",
        exit: 143,
        ..PLAIN
    },
    Program {
        name: "go-tcp",
        needs: &[("python3", "python3"), ("go", "golang-go")],
        options: &["--tcp-established"],
        run: "{once}/counter {port}",
        settle: "{python} {src}/servers.py settle go {port}",
        client: "{python} {src}/servers.py client go {port}",
        prepare: "go build -o {once}/counter {src}/counter.go",
        ..PLAIN
    },
];
