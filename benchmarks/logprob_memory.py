"""Token log-probabilities, forward and backward: ours in chunks against full logits, in time and peak memory.

    python benchmarks/logprob_memory.py [--tokens 2048] [--vocabulary 151936] [--width 896] [--repeats 3]
        [--candidates 32]

Each variant runs in a process of its own, in turn. Seconds are CPU seconds; memory is the peak of the process
over what it held before. With --candidates it is the distillation loss of that many candidates and the rest against
that of the whole vocabulary, targets included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def measure(variant: str, tokens: int, vocabulary: int, width: int, candidates: int) -> None:
    """Run one variant once and print its seconds, MiB and a checksum of its gradients."""
    import torch

    from openprime.models.logprobs import selected_logprobs
    from openprime.prime.losses import distillation_loss, tilted_reference, with_rest

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)  # both variants need them
    ids = torch.randint(vocabulary, (tokens, candidates or 1), generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    if variant == "chunks":
        values = selected_logprobs(hidden, weight, None, ids)
        values = with_rest(values) if candidates else values
    else:
        values = (hidden @ weight.t()).log_softmax(-1)
        values = values if candidates else values.gather(-1, ids)
    if candidates:  # towards something else than the policy
        targets = tilted_reference(values.detach() * 0.9, values.detach(), -2.0, 0.3, 0.5)
        loss = distillation_loss(values, targets, 0.5)
    else:
        loss = values.sum()
    loss.backward()
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
    parser.add_argument("--candidates", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = (args.tokens, args.vocabulary, args.width, args.candidates)
    if args.variant:
        measure(args.variant, *sizes)
        return
    runs: dict[str, list[dict]] = {"chunks": [], "full logits": []}
    for _ in range(args.repeats):
        for variant in runs:
            command = [sys.executable, __file__, "--variant", variant]
            for name, size in zip(("tokens", "vocabulary", "width", "candidates"), sizes, strict=True):
                command += [f"--{name}", str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[variant].append(json.loads(done.stdout))
    medians = {v: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for v, rs in runs.items()}
    what = f"{args.candidates} candidates, " if args.candidates else ""
    print(f"T={sizes[0]}, V={sizes[1]}, width={sizes[2]}, {what}float32, median of {args.repeats}")
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
