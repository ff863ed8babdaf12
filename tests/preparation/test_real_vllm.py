"""`openprime data` against the real vLLM behind its OpenAI-compatible server, on a CPU."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from openprime.cli import main
from support.tiny_runs import records
from support.vllm_models import TOKENIZER, build, saved

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with a small model of no use."""
    folder = tmp_path_factory.mktemp("vllm")
    name = saved(build(True, 0), folder / "model")
    TOKENIZER.save_pretrained(name)
    (folder / "template.jinja").write_text(TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        name,
        "--port",
        str(port),
    ]
    command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "8"]
    command += ["--chat-template", str(folder / "template.jinja"), "--served-model-name", "tiny"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        for _ in range(1500):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (.ci/vllm installs it)")
def test_data__every_row_is_asked_of_a_real_server(url: str, tmp_path: Path):
    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(6)]
    rows.append(
        {"question": "What is the sum of all of these? " + "1 " * 2000, "answer": "2000"}
    )  # too long for it
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["data", "--data.source", str(source), "--endpoint", url, "--out", str(out), "--samples", "3"]
    flags += ["--max-response-tokens", "20", "--sequences", "6"]
    assert main(flags) == 0
    answers = records(out / "answers.jsonl")
    assert sorted(len(answer["texts"]) for answer in answers) == [0, *[3] * 6]
    texts = [text for answer in answers for text in answer["texts"]]
    assert len(set(texts)) > 12  # sampled, each with a seed of its own
    lost = {row["origin"]: row["reason"] for row in records(out / "dropped-by-model.jsonl")}
    assert lost == {**{f"rows.jsonl:{i}": "no_agreement" for i in range(6)}, "rows.jsonl:6": "refused"}
    assert main([*flags, "--resume"]) == 0
    assert records(out / "answers.jsonl") == answers
