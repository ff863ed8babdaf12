"""Token log-probabilities, forward and backward: ours in chunks against full logits, in time and peak memory.

    python benchmarks/logprob_memory.py [--tokens 2048] [--vocabulary 151936] [--width 896] [--repeats 3]

Each variant runs in a process of its own, in turn. Seconds are CPU seconds; memory is the peak of the process
over what it held before.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def measure(variant: str, tokens: int, vocabulary: int, width: int) -> None:
    """Run one variant once and print its seconds, MiB and a checksum of its gradients."""
    import torch

    from openprime.models.logprobs import selected_logprobs

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)  # both variants need them
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    if variant == "chunks":
        values = selected_logprobs(hidden, weight, None, targets)
    else:
        values = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    values.sum().backward()
    seconds = time.process_time() - begun
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    check = float(hidden.grad.double().abs().sum())
    print(json.dumps({"seconds": seconds, "mib": peak, "gradient": check}))


def main() -> None:
    """Compare the variants."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = (args.tokens, args.vocabulary, args.width)
    if args.variant:
        measure(args.variant, *sizes)
        return
    runs: dict[str, list[dict]] = {"chunks": [], "full logits": []}
    for _ in range(args.repeats):
        for variant in runs:
            command = [sys.executable, __file__, "--variant", variant]
            command += ["--tokens", str(sizes[0]), "--vocabulary", str(sizes[1]), "--width", str(sizes[2])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[variant].append(json.loads(done.stdout))
    medians = {v: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for v, rs in runs.items()}
    print(f"T={sizes[0]}, V={sizes[1]}, width={sizes[2]}, float32, median of {args.repeats}")
    for variant, row in medians.items():
        print(
            f"{variant:12} {row['seconds']:7.2f} CPU s  {row['mib']:8.0f} MiB  gradient checksum {row['gradient']:.6e}"
        )
    ours, full = medians["chunks"], medians["full logits"]
    print(
        f"chunks / full: time {ours['seconds'] / full['seconds']:.2f}, memory {ours['mib'] / full['mib']:.2f}"
    )


if __name__ == "__main__":
    main()
