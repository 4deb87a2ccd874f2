#!/usr/bin/env python3
"""Measures a real installation beside its peers; `bench/run` prepares and clears away.

Prints Markdown. Every figure is of this very run; what is timed is said beside it.
"""

import ctypes
import datetime
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = pathlib.Path(os.environ["BENCH_WORK"])
STATE = pathlib.Path(os.environ["CONPAAS_STATE"])
PROGRAM = os.environ["CONPAAS_BIN"]
APP, SERVICE = "shop", "shop/web"
HOST = "shop-admin.localhost"
STATIC, PHP = "/assets/site.css", "/health.php"

SAMPLES = int(os.environ.get("BENCH_SAMPLES", "20"))
STARTS = int(os.environ.get("BENCH_STARTS", "10"))
SCALES = int(os.environ.get("BENCH_SCALES", "5"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))


def note(text):
    print(f"   {text}", file=sys.stderr, flush=True)


def say(text=""):
    print(text, flush=True)


def load():
    return open("/proc/loadavg").read().split()[:3]


def conpaas(*words, limit=120):
    done = subprocess.run([PROGRAM, "-q", *words], capture_output=True, text=True, timeout=limit)
    if done.returncode != 0:
        raise SystemExit(f"error: 'conpaas {' '.join(words)}' ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def ask(*words):
    return json.loads(conpaas(*words, "--json"))


def spread(values, unit="ms"):
    values = sorted(values)
    tenth = values[max(0, round(0.9 * (len(values) - 1)))]
    return (
        f"median {statistics.median(values):.0f} {unit}, best {values[0]:.0f}, 90th percentile {tenth:.0f}, "
        f"worst {values[-1]:.0f} (n={len(values)})"
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def section(title):
    say(f"\n## {title}\n\nload before: {' '.join(load())}\n")
    note(title)


# --- Looking ----------------------------------------------------------------------------------


def events():
    return ask("app", "events", APP, "-n", "200")


def instant(text):
    # Fractions come with as many digits as they need.
    whole, _, fraction = text.rstrip("Z").partition(".")
    base = datetime.datetime.fromisoformat(whole).timestamp()
    return base + (float("0." + fraction) if fraction else 0.0)


def birth(node, service="web"):
    """Milliseconds from `node_requested` to `node_up` of one node."""
    times = {}
    for event in events():
        if event["service"] == service and event["facts"].get("node") == node:
            times[event["kind"]] = instant(event["at"])
    return (times["node_up"] - times["node_requested"]) * 1e3


def nodes():
    return [n for n in ask("node", "list", APP) if n["state"] == "up"]


def machines():
    """Records of the local cloud by machine id."""
    found = {}
    for folder in (STATE / "cloud/machines").iterdir():
        if folder.name.startswith(".") or not (folder / "state.json").exists():
            continue
        record = json.loads((folder / "machine.json").read_text())
        found[record["machine"]] = json.loads((folder / "state.json").read_text())
    return found


def get(port, path, timeout=5):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def until_answer(port, began, limit=60):
    """Milliseconds from `began` to the first 200 of a PHP page through the edge."""
    while time.monotonic() - began < limit:
        status, body = get(port, PHP)
        if status == 200 and b'"ok":true' in body:
            return (time.monotonic() - began) * 1e3
        time.sleep(0.003)
    raise SystemExit(f"error: no 200 within {limit} s")


# --- Machines beside containers ---------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)


class Container:
    """A bare container of the same image by runc: an overlay of its own, the same limits."""

    def __init__(self, number):
        self.name = f"conpaas-bench-{os.getpid()}-{number}"
        self.bundle = WORK / f"bundle{number}"
        image = next(p for p in (STATE / "cloud/images").iterdir() if not p.name.startswith("."))
        config = json.loads((HERE / "peer/config.json").read_text())
        running = next(iter(machines().values()))["init"]["pid"]
        inside, outside, size = map(int, open(f"/proc/{running}/uid_map").read().split()[:3])
        for mapping in ("uidMappings", "gidMappings"):
            config["linux"][mapping] = [{"containerID": inside, "hostID": outside, "size": size}]
        config["linux"]["cgroupsPath"] = f"/{self.name}"
        self.config = json.dumps(config)
        self.options = f"lowerdir={image},upperdir={self.bundle}/upper,workdir={self.bundle}/work,userxattr,volatile"
        self.owner = outside

    def start(self):
        """Milliseconds until its first process has said a word."""
        began = time.monotonic()
        self.bundle.mkdir(mode=0o711)
        for folder in ("upper", "work", "rootfs"):
            (self.bundle / folder).mkdir(mode=0o755)
            os.chown(self.bundle / folder, self.owner, self.owner)
        (self.bundle / "config.json").write_text(self.config)
        if LIBC.mount(b"overlay", bytes(self.bundle / "rootfs"), b"overlay", 0, self.options.encode()) != 0:
            raise SystemExit(f"error: overlay of the peer: {os.strerror(ctypes.get_errno())}")
        command = ["runc", "--root", str(WORK / "runc"), "run", "--bundle", str(self.bundle), self.name]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if self.process.stdout.readline() != b"up\n":
            raise SystemExit(f"error: the peer's container: {self.process.stderr.read().decode()}")
        return (time.monotonic() - began) * 1e3

    def end(self):
        subprocess.run(["runc", "--root", str(WORK / "runc"), "delete", "--force", self.name], capture_output=True, timeout=30)
        self.process.wait(timeout=30)
        LIBC.umount2(bytes(self.bundle / "rootfs"), 0)
        shutil.rmtree(self.bundle, ignore_errors=True)


def measure_machine():
    section("Machine created to agent enrolled, beside a bare container")
    conpaas("service", "scale", SERVICE, "proxy=1", "web=1", "backend=2")
    ours, theirs = [], []
    count = 2
    while len(ours) < SAMPLES:
        conpaas("service", "scale", SERVICE, "backend=+1")
        count += 1
        newest = max(n["number"] for n in nodes() if n["service"] == "web")
        ours.append(birth(newest))
        container = Container(len(theirs))
        try:
            theirs.append(container.start())
        finally:
            container.end()
        if count == 9:
            conpaas("service", "scale", SERVICE, "backend=2")
            count = 2
    ratio = statistics.median(ours) / statistics.median(theirs)
    first = birth(1, "system")
    say("Ours: from `node_requested` (the node is written down, before the cloud is asked) to `node_up`")
    say("(its agent has made its key, enrolled, and connected), times of the Director's own events, one node")
    say("after the other by `service scale backend=+1`. Peer: from making its folders to the first word of its")
    say("first process, `runc run` with `peer/config.json` (same image tree under an overlay, same namespaces,")
    say("limits, capabilities and system-call list; its network has no cable, ours has). In turns.\n")
    say("| | |\n|---|---|")
    say(f"| ours | {spread(ours)} |")
    say(f"| runc | {spread(theirs)} |")
    say(f"| ratio of medians (goal: at most 3) | **{ratio:.2f}** |")
    say(f"| first machine of an application (makes its network too), once | {first:.0f} ms |")
    conpaas("service", "scale", SERVICE, "backend=1")


# --- Starting and scaling ---------------------------------------------------------------------


def timed_start(port, what, target):
    answers, ends = [], []
    for _ in range(STARTS):
        conpaas(what, "stop", target)
        began = time.monotonic()
        follow = subprocess.Popen([PROGRAM, "-q", what, "start", target], stdout=subprocess.DEVNULL)
        answers.append(until_answer(port, began))
        if follow.wait(timeout=120) != 0:
            raise SystemExit(f"error: {what} start failed")
        ends.append((time.monotonic() - began) * 1e3)
    return answers, ends


def measure_start(port):
    section("Start to first 200")
    say(f"From typing the command to the first 200 of `{PHP}` through the edge (asked anew every 3 ms), all three")
    say("roles on one machine, stopped before; and to the end of the command. `app start` also makes the")
    say("manager's machine, `service start` finds it running.\n")
    say("| | first 200 | command ended |\n|---|---|---|")
    for what, target in (("app", APP), ("service", SERVICE)):
        answers, ends = timed_start(port, what, target)
        say(f"| `{what} start` | {spread(answers)} | {spread(ends)} |")


def measure_scale():
    section("1 to 10 backends, and back")
    up, down = [], []
    for _ in range(SCALES):
        conpaas("service", "scale", SERVICE, "proxy=1", "web=1", "backend=1")
        began = time.monotonic()
        conpaas("service", "scale", SERVICE, "backend=10")
        up.append((time.monotonic() - began) * 1e3)
        ready = ask("app", "show", APP)["services"][0]["nodes"]
        serving = [r for n in ready for r in n["roles"] if r["role"] == "backend" and r["phase"] == "ready"]
        if len(serving) != 10:
            raise SystemExit(f"error: {len(serving)} backends are ready, not 10")
        began = time.monotonic()
        conpaas("service", "scale", SERVICE, "backend=1")
        down.append((time.monotonic() - began) * 1e3)
    say("From typing `service scale` to its operation's end, from one machine with all three roles (10 ready")
    say("backends on machines of their own are checked) and back to one machine.\n")
    say("| | |\n|---|---|")
    say(f"| 1 to 10 | {spread(up)} |")
    say(f"| 10 to 1 | {spread(down)} |")


# --- The proxy beside the same by hand --------------------------------------------------------


def order(runtime, command):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(runtime)
        s.sendall(command.encode() + b"\n")
        parts = []
        while part := s.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


class Proxy:
    """The machine of the service's load balancer, and a second one there written by hand."""

    def __init__(self):
        wanted = {n["machine"]: n for n in nodes() if any(r["role"] == "proxy" for r in n["summary"]["roles"])}
        machine, node = next(iter(wanted.items()))
        record = machines()[machine]
        self.supervisor, self.init = record["supervisor"]["pid"], record["init"]["pid"]
        self.address = node["address"]
        self.root = pathlib.Path(f"/proc/{self.init}/root")
        folder = self.root / "run/conpaas/roles/proxy"
        self.port = int(re.search(r"^\s*bind \S+:(\d+)$", (folder / "haproxy.cfg").read_text(), re.M)[1])
        threads = re.search(r"nbthread (\d+)", (folder / "haproxy.cfg").read_text())[1]
        runtime = str(folder / "runtime.sock")
        self.pid = self.process_of(lambda words: any(w.startswith("/run/conpaas/roles/proxy/") for w in words))
        self.peer_port = self.port + 1000
        active = dict(line.split() for line in (folder / "active.map").read_text().splitlines())
        release = active["active"]
        # For a minute after a switch files carry a cookie, too: what is measured is every day.
        time.sleep(max(0, int(active["since"]) + 61 - time.time()))
        rows = order(runtime, "show stat -1 4 -1").lstrip("# ").splitlines()
        names = rows[0].split(",")
        lines = {"php": "", "static": ""}
        check = "check inter 500ms fastinter 200ms fall 3 rise 1"
        for row in (dict(zip(names, r.split(","))) for r in rows[1:] if r):
            kind = row["pxname"].split("-s")[0]
            if row["svname"].startswith(f"r{release}n") and kind in lines:
                extra = ""
                if kind == "php":
                    status = int(row["addr"].rsplit(":", 1)[1]) + 100
                    extra = f" proto fcgi port {status}"
                most = f" maxconn {row['slim']}" if row["slim"] else ""
                lines[kind] += f"  server {row['svname']} {row['addr']}{extra} {check}{most}\n"
        self.config = (HERE / "peer/haproxy.cfg").read_text()
        for key, value in {
            "@THREADS@": threads,
            "@LISTEN@": f"{self.address}:{self.peer_port}",
            "@ROOT@": (folder / "roots.map").read_text().split()[1],
            "@PHP@": lines["php"],
            "@STATIC@": lines["static"],
        }.items():
            self.config = self.config.replace(key, value)
        self.peer = None

    def process_of(self, test):
        namespace = os.readlink(f"/proc/{self.init}/ns/pid")
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    if "haproxy" in words[0] and test(words):
                        return int(entry.name)
            except OSError:
                continue
        raise SystemExit("error: the load balancer's process is not there")

    def start_peer(self):
        enter = ["nsenter", "-t", str(self.init), "-U", "-m", "-n", "-i", "-u", "-p", "-S", "0", "-G", "0"]
        # From inside: the host's root is nobody on the machine's file systems.
        subprocess.run([*enter, "/bin/sh", "-c", "cat >/run/peer.cfg"], input=self.config, text=True, check=True, timeout=10)
        cgroups = []
        for line in open(f"/proc/{self.init}/cgroup"):
            _, kinds, path = line.strip().split(":", 2)
            folder = pathlib.Path("/sys/fs/cgroup") / kinds / path.lstrip("/")
            if path != "/" and (folder / "cgroup.procs").exists():
                cgroups.append(folder / "cgroup.procs")

        def join():
            # The same limits as the machine's own processes.
            for file in cgroups:
                with open(file, "w") as f:
                    f.write(str(os.getpid()))

        log = open(WORK / "peer.log", "w")
        self.peer_starter = subprocess.Popen(
            [*enter, "/usr/sbin/haproxy", "-db", "-f", "/run/peer.cfg"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=join)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if self.fetch(self.peer_port, STATIC) and self.fetch(self.peer_port, PHP):
                self.peer = self.process_of(lambda words: "/run/peer.cfg" in words)
                return
            time.sleep(0.05)
        raise SystemExit("error: the load balancer by hand does not answer: " + (WORK / "peer.log").read_text()[:2000])

    def stop_peer(self):
        if self.peer:
            os.kill(self.peer, signal.SIGKILL)
        else:
            self.peer_starter.kill()
        self.peer_starter.wait(timeout=10)

    def inside(self, *words):
        return ["nsenter", "-t", str(self.supervisor), "-U", "-n", "-S", "0", "-G", "0", *words]

    def fetch(self, port, path):
        url = f"http://{self.address}:{port}{path}"
        done = subprocess.run(self.inside("curl", "-fsS", "-m", "3", "-H", f"Host: {HOST}", url), capture_output=True)
        return done.stdout if done.returncode == 0 else None


TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """Processor time of a process, from the scheduler's own nanoseconds where they are shown."""
    total = 0
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        if total:
            return total / 1e9
    except OSError:
        pass
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wrk(command, connections, watched):
    before = cpu_seconds(watched)
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 30)
    used = cpu_seconds(watched) - before
    text = done.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", text)
    count = int(re.search(r"(\d+) requests in", text)[1]) if rate else 0
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: (.*)", text)
    if not rate or not count or bad or errors:
        raise SystemExit(f"error: wrk did not go well: {text} {done.stderr}")
    factor = {"us": 1, "ms": 1e3, "s": 1e6}[half[2]]
    return {"rate": float(rate[1]), "half": float(half[1]) * factor, "cpu": used / count * 1e6}


def measure_proxy(edge_port, edge_pid):
    section("Client to the service's proxy, beside the same by hand; and the edge")
    conpaas("service", "scale", SERVICE, "proxy=1", "web=2", "backend=2")
    proxy = Proxy()
    proxy.start_peer()
    try:
        same = proxy.fetch(proxy.port, STATIC) == proxy.fetch(proxy.peer_port, STATIC)
        if not same or b'"ok":true' not in (proxy.fetch(proxy.port, PHP) or b""):
            raise SystemExit("error: ours and the peer's answers differ")
        say(f"`wrk -t1` for {SECONDS} s a run, {ROUNDS} rounds in turns (ours, by hand, through the edge), keep-alive. The proxy")
        say("is alone on its machine (`small`: 0.5 vCPUs, 256 MiB), two `web` and two `backend` nodes behind it.")
        say("By hand: `peer/haproxy.cfg` as filled in below, the same program in the same machine, namespaces and")
        say("limits, with the same servers, logging a line a request as ours does; without the system-call filter")
        say("that machines have. Client in the application's network; for the edge on the host, 127.0.0.1.")
        say("Medians of the rounds. CPU is the proxy's own processor time a request (for the edge: the edge's).\n")
        say("| page | connections | | requests/s | half of them within | CPU a request |\n|---|---|---|---|---|---|")
        verdicts = []
        for name, path in (("static", STATIC), ("PHP", PHP)):
            for connections in (1, 16):
                runs = {"ours": [], "by hand": [], "through the edge": []}
                plan = {
                    "ours": (proxy.inside, f"http://{proxy.address}:{proxy.port}{path}", proxy.pid),
                    "by hand": (proxy.inside, f"http://{proxy.address}:{proxy.peer_port}{path}", proxy.peer),
                    "through the edge": (lambda *w: list(w), f"http://127.0.0.1:{edge_port}{path}", edge_pid),
                }
                for _ in range(ROUNDS):
                    for who, (wrap, url, pid) in plan.items():
                        command = wrap("wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-H", f"Host: {HOST}", url)
                        runs[who].append(wrk(command, connections, pid))
                note(f"{name}, {connections} connections: done")
                middle = {w: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for w, rs in runs.items()}
                for who, m in middle.items():
                    low, high = min(r["rate"] for r in runs[who]), max(r["rate"] for r in runs[who])
                    say(f"| {name} | {connections} | {who} | {m['rate']:.0f} ({low:.0f} to {high:.0f}) | {m['half']:.0f} µs | {m['cpu']:.0f} µs |")
                pairs = [a["rate"] / b["rate"] for a, b in zip(runs["ours"], runs["by hand"])]
                edge = [a["rate"] / b["rate"] for a, b in zip(runs["through the edge"], runs["ours"])]
                verdicts.append((name, connections, statistics.median(pairs), statistics.median(edge),
                                 middle["through the edge"]["half"] - middle["ours"]["half"]))
        say("\n| page | connections | ours / by hand (goal: at least 0.95) | through the edge / ours | the edge adds, at the median |")
        say("|---|---|---|---|---|")
        for name, connections, pair, edge, adds in verdicts:
            say(f"| {name} | {connections} | **{pair:.3f}** | {edge:.3f} | {adds:+.0f} µs |")
        say(f"\nThe load balancer by hand:\n\n```\n{proxy.config}```")
    finally:
        proxy.stop_peer()
    conpaas("service", "scale", SERVICE, "web=1", "backend=1")


# --- Memory -----------------------------------------------------------------------------------


def memory(pid):
    found = {}
    for line in open(f"/proc/{pid}/smaps_rollup").read().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) / 1024
    return found["Pss"], found["Rss"], found["Private_Dirty"] + found["Private_Clean"]


def processes(namespace_of):
    """Programs of ours in the machine of this init: what they are, by process."""
    namespace = os.readlink(f"/proc/{namespace_of}/ns/pid")
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if words[0].endswith("conpaas"):
                    yield words[1], int(entry.name)
        except OSError:
            continue


def measure_memory(director, edge):
    section("Memory at rest")
    conpaas("service", "scale", SERVICE, "proxy=1", "web=1", "backend=1")
    time.sleep(15)
    found = {"director": [memory(director)], "edge": [memory(edge)], "manager": [], "agent": [], "init": [], "supervisor": []}
    for state in machines().values():
        found["supervisor"].append(memory(state["supervisor"]["pid"]))
        for kind, pid in processes(state["init"]["pid"]):
            if kind in found:
                found[kind].append(memory(pid))
    aims = {"director": "60", "manager": "30", "agent": "20"}
    say("From `/proc/PID/smaps_rollup`, 15 s after the last change; one application, two machines; mean where")
    say("there are several. PSS shares the pages of the one program among all that run it.\n")
    say("| | PSS (MiB) | its own alone | RSS | aim (MB) |\n|---|---|---|---|---|")
    for kind, values in found.items():
        if values:
            pss, rss, own = (statistics.mean(v[i] for v in values) for i in range(3))
            say(f"| {kind} ({len(values)}) | {pss:.1f} | {own:.1f} | {rss:.1f} | {aims.get(kind, '')} |")


def main():
    wanted = sys.argv[1:]
    api, edge = free_port(), free_port()
    say("# What it costs\n")
    cpus = os.cpu_count()
    kernel = os.uname().release.split("-")[0]
    say(f"{datetime.date.today()}, {cpus} processors, Linux {kernel}, {conpaas('--version').strip()}, load at the start {' '.join(load())}.")
    say(f"Image {pathlib.Path(os.environ['CONPAAS_IMAGE']).name.split('.')[0]}; {subprocess.run(['runc', '--version'], capture_output=True, text=True).stdout.splitlines()[0]}.")
    conpaas("nutshell", "up", "--api-port", str(api), "--edge-port", str(edge), limit=180)
    conpaas("app", "create", APP)
    conpaas("service", "add", APP, "php", "--name", "web")
    conpaas("code", "upload", SERVICE, str(ROOT / "examples/visits"), "--activate")
    began = time.monotonic()
    follow = subprocess.Popen([PROGRAM, "-q", "app", "start", APP], stdout=subprocess.DEVNULL)
    first = until_answer(edge, began)
    follow.wait(timeout=120)
    note(f"first start: {first:.0f} ms to the first 200")
    pid = {name: json.loads((STATE / f"run/{name}.json").read_text())["pid"] for name in ("director", "edge")}
    run = {
        "memory": lambda: measure_memory(pid["director"], pid["edge"]),
        "machine": measure_machine,
        "start": lambda: measure_start(edge),
        "scale": measure_scale,
        "proxy": lambda: measure_proxy(edge, pid["edge"]),
    }
    for name in ("machine", "start", "scale", "proxy", "memory"):
        if name in wanted:
            run[name]()
    say(f"\nLoad at the end: {' '.join(load())}.")


if __name__ == "__main__":
    # So that `finally` runs when the time limit of `bench/run` ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
