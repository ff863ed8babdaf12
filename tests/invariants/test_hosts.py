"""Two machines: namespaces of network, processes, shared memory and mounts, with a cable between them.

What they share is the folder of the run, as a network file system would have it. Each has a hub's cache of its own,
with the model, where the other one cannot look.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.rank_runs import FLAGS, assert_equal_to_rounding, ended, free_port, start
from support.tiny_runs import rl, rl_args

HOSTS = (("op-one", "10.77.0.1"), ("op-two", "10.77.0.2"))


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces, `eth0` in each at the ends of one cable; no other way leads out of them."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("needs iproute2 and root")
    for name, _ in HOSTS:
        ip("netns", "del", name, check=False)
    if ip("netns", "add", HOSTS[0][0], check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    ip("netns", "add", HOSTS[1][0])
    try:
        (one, _), (two, _) = HOSTS
        ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        for name, address in HOSTS:
            inside = ("-n", name)
            ip(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")
        yield
    finally:
        for name, _ in HOSTS:
            ip("netns", "del", name, check=False)


def cached(model: Path, cache: Path, name: str) -> None:
    """Put a model into a hub's cache as a download does."""
    place = cache / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / "0123abcd")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abcd")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hosts__two_machines_with_a_copy_each_do_what_one_process_does(
    hosts: None, model: Path, tmp_path: Path
):
    one, out = rl(model, tmp_path / "one", *FLAGS), tmp_path / "run"
    port = str(free_port())
    processes = []
    for number, (name, _) in enumerate(HOSTS):
        home, other = tmp_path / name, tmp_path / HOSTS[1 - number][0]
        (home / "temporary").mkdir(parents=True)
        other.mkdir(exist_ok=True)
        cached(model, home / "cache", "tiny/clock")
        hidden = f"mount -t tmpfs none {other}; mount -t tmpfs none /dev/shm"
        torchrun = ("--nnodes", "2", "--node-rank", str(number))
        torchrun = (*torchrun, "--master-addr", HOSTS[0][1], "--master-port", port)
        processes.append(
            start(
                2,
                [*rl_args(Path("tiny/clock"), out, *FLAGS), "--parallel.replicas", "2"],
                *torchrun,
                before=(
                    *("ip", "netns", "exec", name, "unshare", "--uts", "--ipc", "--mount"),
                    *("--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("bash", "-ec", f'hostname {name}; {hidden}; exec "$@"', "-"),
                ),
                HOME=str(home),
                HF_HOME=str(home / "cache"),
                HF_HUB_OFFLINE="1",
                TMPDIR=str(home / "temporary"),
                GLOO_SOCKET_IFNAME="eth0",
            )
        )
    for status, said in ended(processes):
        assert status == 0, said
    assert_equal_to_rounding(out, one)
