"""Measure a deployment's process: what HTTP adds to `model.generate`, what eight clients get of one's pace.

All answers are greedy and as long as `--tokens`, or shorter where the model ends its turn. The direct calls
and those over HTTP take turns, so that both meet the same machine. Prints a Markdown table.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the emulator's processes run under

import httpx
import psutil
import pyarrow.parquet
import torch

from benchmarks.synthetic import full_size
from local_azureml.engine import processes
from local_azureml.engine.serving.generation import Generator

SEEDS = Path(processes.__file__).parents[1] / "seeds"
SAMPLE = SEEDS / "hub/datasets/HuggingFaceH4/ultrachat_200k/data/test_sft-00000-of-00001.parquet"
CLIENTS = 8


def main() -> None:
    """Serve the model, ask alone and together, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, default=SEEDS / "base_model", help="a checkpoint or MLflow folder"
    )
    parser.add_argument(
        "--full-size-layers", type=int, help="random weights of Phi-3-mini's size, so many layers (32)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--requests", type=int, default=40, help="of each kind")
    options = parser.parse_args()
    questions = pyarrow.parquet.read_table(SAMPLE)["prompt"].to_pylist()[: options.requests]
    with tempfile.TemporaryDirectory() as folder:
        if options.full_size_layers:
            options.model = full_size(options.full_size_layers, Path(folder))
        socket = f"{folder}/socket"
        client = httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=300)
        specification = {"model": str(options.model), "socket": socket, "faults": {"answer-shape": "openai"}}
        specification |= {"request_timeout": 300, "max_concurrent_requests": CLIENTS}
        entry, log = "local_azureml.engine.serving.chat:run", Path(folder) / "log.txt"
        server = processes.start(entry, specification, Path(folder), log, {})
        url = "http://deployment"
        wait_for(server, client, url)

        def ask(question: str) -> int:
            talk = [{"role": "user", "content": question}]
            data = {"input_string": talk, "parameters": {"max_new_tokens": options.tokens}}
            return client.post(f"{url}/score", json={"input_data": data}).json()["usage"]["completion_tokens"]

        measure(options, questions, ask)
        server.kill()
        server.wait()
        client.close()


def wait_for(server: processes.Process, client: httpx.Client, url: str) -> None:
    """Return once the server answers."""
    while server.alive:
        try:
            client.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit(server.error()["message"])


def measure(options: argparse.Namespace, questions: list[str], ask) -> None:
    """Print seconds an answer and tokens a second, directly, over HTTP, and of several clients at once."""
    ways = direct(options)
    alone, over_http, crowds = {way: [] for way in ways}, [], []
    tokens = {"one": 0, "many": 0}
    busy = {"one": 0.0, "many": 0.0}  # processor seconds of the server
    for generate in (*ways.values(), ask):
        generate(max(questions, key=len))  # a static cache of this length does for all
    with ThreadPoolExecutor(CLIENTS) as clients:
        for first in range(0, len(questions), CLIENTS):
            some = questions[first : first + CLIENTS]
            for question in some:
                for way, generate in ways.items():
                    alone[way].append(timed(generate, question)[0])
                before = processor_seconds()
                seconds, made = timed(ask, question)
                over_http.append(seconds)
                tokens["one"] += made
                busy["one"] += processor_seconds() - before
            before = processor_seconds()
            seconds, made = timed(lambda asked: sum(clients.map(ask, asked)), some * 4)
            crowds.append(seconds)
            tokens["many"] += made
            busy["many"] += processor_seconds() - before
    one, many = tokens["one"] / sum(over_http), tokens["many"] / sum(crowds)
    added = statistics.median(b / a - 1 for a, b in zip(alone["model.generate"], over_http, strict=True))
    print("| | median seconds an answer | tokens/s | tokens a processor second |\n|---|---|---|---|")
    for way, took in alone.items():
        print(f"| {way} | {statistics.median(took):.3f} | {tokens['one'] / sum(took):,.0f} | - |")
    paces = {way: f"{tokens[way] / busy[way]:,.0f}" for way in tokens}
    print(f"| one client over HTTP | {statistics.median(over_http):.3f} | {one:,.0f} | {paces['one']} |")
    print(f"| {CLIENTS} clients together | - | {many:,.0f} | {paces['many']} |")
    print(f"\nHTTP adds {added:+.1%} at the median; {CLIENTS} clients get {many / one:.1f} x one's tokens")


def direct(options: argparse.Namespace) -> dict:
    """Return ways to answer a question with `model.generate`; a GPU runs the static cache's compiled."""
    answering = Generator(options.model, 1)

    @torch.inference_mode()
    def generate(question: str, **how) -> None:
        talk = [{"role": "user", "content": question}]
        encoded = answering.tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(answering.model.device)
        answering.model.generate(
            **encoded,
            max_new_tokens=options.tokens,
            eos_token_id=sorted(answering.ends),
            do_sample=False,
            **how,
        )

    static = partial(generate, cache_implementation="static")
    return {"model.generate": generate, "model.generate, static cache": static}


def processor_seconds() -> float:
    """Return what the server has taken of the processor, with the processes that it started."""
    return sum(child.cpu_times().user for child in psutil.Process().children(recursive=True))


def timed(function, argument) -> tuple[float, int]:
    """Return the seconds that a call took, and its result."""
    begun = time.perf_counter()
    result = function(argument)
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
