"""Pre-trains on two hosts, which are network namespaces of this machine with addresses of their own and a cable.

    python tests/helpers/network_namespaces.py [FOLDER]

Needs `ip` and the right to make namespaces (root); without them it prints why and ends with status 77.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
PORT = 29511
STEPS = 3
CONFIG = """
image_size: 32
crop_scale: null
randaugment: null
max_text_tokens: 40
vocab_size: 100
vit: custom
vit_width: 32
vit_depth: 1
vit_heads: 2
vit_patch: 16
text_width: 32
text_layers: 1
text_heads: 2
text_hidden: 64
embed_dim: 16
queue_size: 20
batch_size: 4
precision: fp32
num_workers: 0
log_every_steps: 1
"""


def host(number: int) -> tuple[str, str, str]:
    """(namespace, its end of the cable, its address) of host 1 or 2; the process id keeps two runs apart."""
    return f"blip{os.getpid()}h{number}", f"b{os.getpid() % 10**7}v{number}", f"10.213.7.{number}"


def ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


def must(*arguments: str) -> None:
    done = ip(*arguments)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def join_hosts(cleanup: ExitStack) -> str:
    """Makes the namespaces and the cable; returns why it cannot be done, or nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (package iproute2)"
    try:
        for number in (1, 2):
            namespace, _, _ = host(number)
            must("netns", "add", namespace)
            cleanup.callback(ip, "netns", "delete", namespace)  # the cable's end goes with it
        (space, end, _), (other_space, other_end, _) = host(1), host(2)
        must("link", "add", end, "netns", space, "type", "veth", "peer", "name", other_end, "netns", other_space)
        for number in (1, 2):
            namespace, device, address = host(number)
            must("-n", namespace, "address", "add", f"{address}/24", "dev", device)
            must("-n", namespace, "link", "set", device, "up")
            must("-n", namespace, "link", "set", "lo", "up")
    except OSError as error:
        return f"this user may not make network namespaces ({error})"
    return ""


def start(number: int, folder: Path) -> subprocess.Popen:
    """torchrun on one host; both meet at host 1's address."""
    namespace, device, address = host(number)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=blip",
    ]
    rendezvous = [f"--rdzv_endpoint={host(1)[2]}:{PORT}", f"--local_addr={address}"]
    if number == 1:
        rendezvous.append("--rdzv_conf=is_host=1")
    script = [str(ROOT / "pretrain.py"), "--config", str(folder / "config.yaml"), "--output_dir", str(folder / "run")]
    return subprocess.Popen(
        [
            "ip",
            "netns",
            "exec",
            namespace,
            sys.executable,
            *launcher,
            *rendezvous,
            *script,
            "--set",
            f"max_steps={STEPS}",
        ],
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def main(folder: Path) -> int:
    from blip.data.phantoms import write_phantoms
    from blip.train.log import read_metrics

    with ExitStack() as cleanup:
        reason = join_hosts(cleanup)
        if reason:
            print(f"skipped: {reason}", file=sys.stderr)
            return SKIPPED
        captions = write_phantoms(folder / "phantoms", 24, image_size=32)
        (folder / "config.yaml").write_text(f"train_file: [{captions}]\n{CONFIG}")
        running = [start(number, folder) for number in (1, 2)]
        for one in running:
            cleanup.callback(one.kill)
        shown = [one.communicate(timeout=120)[1] for one in running]
        for number, (one, text) in enumerate(zip(running, shown, strict=True), 1):
            if one.returncode:
                print(f"host {number} ended with status {one.returncode}:\n{text}", file=sys.stderr)
                return 1
    steps = [line["step"] for line in read_metrics(folder / "run") if "lr" in line]  # without the lines of epochs
    assert steps == list(range(1, STEPS + 1)), steps
    assert "global batch 8" in shown[0] + shown[1], "each host saw its own half"
    assert (folder / "run" / "checkpoints" / "latest" / "model.safetensors").is_file()
    print(f"two hosts trained {STEPS} steps")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
