"""What dev/stack runs: the recipe of each server, and how to tell and end its processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FILES = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or FILES.parent.parent / "target").resolve()
STACK = TARGET / "stack"
CACHE = TARGET / "stack-cache"
PORTS = {"redis": 16379, "amqp": 15675, "management": 15676, "erlang": 15677, "epmd": 15678, "prometheus": 15679,
         "cql": 19042, "storage": 19043}

# Every process of the stack carries this variable, and so do those it starts in turn (Erlang's epmd makes itself a
# daemon). It tells ours from others': a pid file may name a process that has nothing to do with us, or be gone after a
# `cargo clean` while its server still runs.
OWNER = "FANFOLD_STACK_OWNER"
STARTED = "==== dev/stack starts "
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in /usr/sbin switches to another user


class Fail(Exception):
    """Something the user has to know; shown without a traceback."""


def say(text):
    print(f"stack: {text}", file=sys.stderr, flush=True)


# ---- processes

@dataclass(frozen=True)
class Process:
    pid: int
    began: int  # in clock ticks since boot; with the pid it names a process once and for all
    command: str
    service: str

    def alive(self):
        stat = read_stat(self.pid)
        return stat is not None and stat[1] == self.began

    def send(self, number):
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass


def read_stat(pid):
    """The command's name and the start time; None if there is no such process, or only a zombie."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return None if fields[0] in "ZX" else (head.partition("(")[2], int(fields[19]))


def processes():
    """Everything that runs for this stack, the oldest first."""
    found, mark = [], f"{OWNER}={STACK}:".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        service = next((v[len(mark):].decode() for v in values if v.startswith(mark)), None)
        stat = service and read_stat(folder.name)
        if stat:
            found.append(Process(int(folder.name), stat[1], stat[0], service))
    return sorted(found, key=lambda p: p.began)


def wait_until(done, seconds):
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def end(those, seconds):
    """SIGTERM, time to leave, then SIGKILL."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10)):
        those = [p for p in those if p.alive()]
        for process in those:
            process.send(number)
            process.send(signal.SIGCONT)  # a test may have paused it, and a paused process never sees the SIGTERM
        if wait_until(lambda: not any(p.alive() for p in those), patience):
            return
        if number == signal.SIGTERM:
            say(f"SIGKILL for {', '.join(f'{p.command} ({p.pid})' for p in those if p.alive())}: "
                f"it did not leave within {seconds} s")
    raise Fail(f"still there after SIGKILL: {[p.pid for p in those if p.alive()]}")


# ---- services

class Service:
    after = None  # the service that must be ready first

    def __init__(self, name, layout, host="127.0.0.1"):
        self.name, self.layout, self.host = name, layout, host
        self.data, self.log, self.pid_file = STACK / name, STACK / f"{name}.log", STACK / f"{name}.pid"

    def port(self, name):
        return self.layout["ports"][name]

    def process(self):
        """The server itself, neither a shell around it nor a child."""
        return next((p for p in processes() if p.service == self.name and p.command == self.command), None)

    def listens(self):
        """The names of the ports that must be free."""
        return self.port_names

    def address(self):
        return f"{self.host}:{self.port(self.port_names[0])}"

    def started_text(self):
        """What the log says since the last start."""
        try:
            return self.log.read_text(errors="replace").rpartition(STARTED)[2]
        except FileNotFoundError:
            return ""

    def ready(self):
        """Its process, once it is ready. The log is asked first, so that nobody knocks at a server still starting."""
        return self.process() if self.says_ready in self.started_text() and self.answers() else None

    def launch(self):
        for folder in (self.data, *(self.data / f for f in self.folders)):
            folder.mkdir(parents=True, exist_ok=True)
        argv, env = self.prepare()
        env = {**os.environ, **{k: str(v) for k, v in env.items()}, OWNER: f"{STACK}:{self.name}"}
        with self.log.open("a") as log:
            log.write(f"{STARTED}{self.name}, {time.strftime('%F %T')}\n")
            log.flush()
            # A session of its own: Ctrl-C at the terminal is for dev/stack or the tests, not for the servers.
            return subprocess.Popen([str(a) for a in argv], env=env, cwd=self.data, stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=log, start_new_session=True,
                                    preexec_fn=lambda: os.sched_setaffinity(0, self.processors()))

    def processors(self):
        """Where it may run."""
        return halves()[1] if for_benchmarks() else os.sched_getaffinity(0)

    def check_ports(self):
        for name in self.listens():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, self.port(name)))
                except OSError as error:
                    variable = f"FANFOLD_STACK_{name.upper()}_PORT"
                    raise Fail(f"{self.name} needs port {self.port(name)} of {self.host}: {error.strerror}. Free the "
                               f"port, or `dev/stack down` and choose another by {variable}.") from None

    def exchange(self, port_name, request, reply):
        """Whether the server answers in its protocol: an open port alone may belong to one still loading."""
        try:
            with socket.create_connection((self.host, self.port(port_name)), timeout=1) as conn:
                conn.sendall(request)
                return conn.recv(64).startswith(reply)
        except OSError:
            return False


class Redis(Service):
    command, port_names, folders = "redis-server", ["redis"], []
    packages, says_ready = ["redis-server"], "Ready to accept connections"

    def prepare(self):
        # Benchmarks run as the README recommends, tests as is worse for us: with what was there before coming back.
        kept = "no" if for_benchmarks() else "yes"
        # Without a title of its own: Redis would write it over the environment, where we look for our mark.
        return ["redis-server", "--port", self.port("redis"), "--bind", self.host, "--dir", self.data, "--appendonly",
                kept, "--save", "", "--daemonize", "no", "--set-proc-title", "no"], {}

    def answers(self):
        return self.exchange("redis", b"PING\r\n", b"+PONG")

    def env(self):
        return {"REDIS": f"redis://{self.address()}"}


class RabbitMQ(Service):
    command, port_names, folders = "beam.smp", ["amqp", "management", "erlang", "epmd", "prometheus"], ["home"]
    packages, says_ready = ["rabbitmq-server"], "Server startup complete"

    def listens(self):
        # Our epmd outlives a killed broker and serves the next one.
        mine = any(p.service == self.name and p.command == "epmd" for p in processes())
        return [n for n in self.port_names if not (mine and n == "epmd")]

    def prepare(self):
        data = self.data
        fill("rabbitmq.conf", data, MANAGEMENT_PORT=self.port("management"), PROMETHEUS_PORT=self.port("prometheus"))
        (data / "plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
        (data / "environment").write_text("")
        return [RABBITMQ], {
            "HOME": data / "home", "ERL_EPMD_PORT": self.port("epmd"), "ERL_EPMD_ADDRESS": self.host,
            "RABBITMQ_NODENAME": "fanfold@localhost", "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": self.port("amqp"), "RABBITMQ_DIST_PORT": self.port("erlang"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": data / "mnesia", "RABBITMQ_LOG_BASE": data / "log",
            "RABBITMQ_PID_FILE": data / "pid", "RABBITMQ_ENABLED_PLUGINS_FILE": data / "plugins",
            # The system's own configuration, if there is one, is for the system's broker.
            "RABBITMQ_CONFIG_FILE": data / "rabbitmq.conf", "RABBITMQ_CONF_ENV_FILE": data / "environment",
            "RABBITMQ_ADVANCED_CONFIG_FILE": data / "advanced.config", "RABBITMQ_LOGS": "-",
        }

    def answers(self):
        return (self.exchange("amqp", b"AMQP\0\0\x09\x01", b"\x01\0\0")
                and self.exchange("management", b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"))

    def env(self):
        return {"AMQP": f"amqp://guest:guest@{self.address()}/%2f",
                "AMQP_MANAGEMENT": f"http://{self.host}:{self.port('management')}"}


SOON_COMPILED = ["-XX:Tier4InvocationThreshold=1000", "-XX:Tier4MinInvocationThreshold=120",
                 "-XX:Tier4CompileThreshold=3000", "-XX:Tier4BackEdgeThreshold=8000"]


class Cassandra(Service):
    command, port_names, folders = "java", ["cql", "storage"], ["logs", "triggers", "tmp"]
    packages, says_ready = ["openjdk-17-jre-headless", "maven"], "Startup complete"
    tokens = [-6148914691236517206, 0, 6148914691236517205]  # the ring in three equal parts

    def __init__(self, name, layout, number):
        super().__init__(name, layout, f"127.0.0.{number + 1}")
        self.number, self.after = number, "cassandra" if number else None

    def prepare(self):
        data, several = self.data, self.layout["nodes"] > 1
        fill("cassandra.yaml", data, TOKEN=self.tokens[self.number], IP=self.host, CQL_PORT=self.port("cql"),
             STORAGE_PORT=self.port("storage"), SEED=f"127.0.0.1:{self.port('storage')}")
        heap = os.environ.get("FANFOLD_STACK_HEAP") or ("512M" if several else "1G")
        lib = jars()
        argv = [java(), f"@{FILES / 'jvm.args'}", f"-Xms{heap}", f"-Xmx{heap}",
                f"-Dcassandra.ring_delay_ms={5000 if several else 1000}", f"-javaagent:{next(lib.glob('jamm-*.jar'))}",
                f"-Dcassandra.config={(data / 'cassandra.yaml').as_uri()}", f"-Dcassandra.storagedir={data}",
                f"-Dcassandra.logdir={data}/logs", f"-Dcassandra.triggers_dir={data}/triggers",
                f"-Djava.io.tmpdir={data}/tmp", f"-Dlogback.configurationFile={FILES / 'logback.xml'}"]
        # Tests want it up soon. Benchmarks want what it comes to after hours of work, and have 300,000 rows to warm it up:
        # what runs once for each of five hundred rows is compiled in full after a fifth of the calls that Java waits for.
        argv += SOON_COMPILED if for_benchmarks() else ["-XX:TieredStopAtLevel=1"]
        return [*argv, "-cp", f"{lib}/*", "org.apache.cassandra.service.CassandraDaemon"], {"MALLOC_ARENA_MAX": 4}

    def processors(self):
        return halves()[0] if for_benchmarks() else os.sched_getaffinity(0)

    def answers(self):
        # OPTIONS and SUPPORTED, the only exchange CQL allows before a session.
        return self.exchange("cql", b"\x04\0\0\0\x05\0\0\0\0", b"\x84\0\0\0\x06")

    def env(self):
        if self.number:
            return {}
        nodes = [f"127.0.0.{n + 1}:{self.port('cql')}" for n in range(self.layout["nodes"])]
        return {"CQL": self.address(), **({"CQL_NODES": ",".join(nodes)} if len(nodes) > 1 else {})}


def for_benchmarks():
    """Whether the servers are to be as fast as in production, not quick to start and strict."""
    return os.environ.get("FANFOLD_STACK_BENCH") == "1"


def halves():
    """For benchmarks the store has half of the processors to itself, as on machines of its own, and everything else the rest:
    its threads are many, and beside them each wake-up of the others takes its turn. Where there is one only, all share it."""
    every = sorted(os.sched_getaffinity(0))
    middle = len(every) // 2
    return (every[:middle], every[middle:]) if middle else (every, every)


def fill(template, folder, **values):
    text = (FILES / template).read_text()
    for key, value in values.items():
        text = text.replace(f"__{key}__", str(value))
    (folder / template).write_text(text)


def java():
    """Java 17 exactly: Cassandra 5.0 knows no newer one."""
    debian = sorted(map(str, Path("/usr/lib/jvm").glob("java-17-openjdk-*/bin/java")))
    return os.environ.get("FANFOLD_STACK_JAVA") or (debian[0] if debian else None)


def jars():
    """The folder for the version that pom.xml asks for."""
    version = re.search(r"cassandra-all</artifactId>\s*<version>([^<]+)", (FILES / "pom.xml").read_text())[1]
    return CACHE / f"cassandra-{version}" / "lib"
