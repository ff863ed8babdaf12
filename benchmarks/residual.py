"""What the precision of the residual stream costs: log-probabilities and gradients against float32.

    python benchmarks/residual.py MODEL TEXT        # a folder, hub id or GGUF file; a file whose paragraphs are read

Blocks multiply in bfloat16 (autocast), the head in float32, on a CPU. float32 is how the package trains: the residual
stream, norms and rotation are float32. bfloat16: what the embedding gives, and so the stream, is bfloat16. A sampler is
the whole model in bfloat16 but for the head, which is how engines compute.
"""

import argparse
from pathlib import Path

import torch

from openprime.models.hub import load_model, load_tokenizer
from openprime.models.logprobs import token_logprobs
from openprime.models.placement import Placement

PROMPT = 4
"""Tokens of a paragraph that are not scored."""


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=8, help="paragraphs")
    parser.add_argument("--tokens", type=int, default=128, help="of a paragraph at most")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model).eval(), load_tokenizer(args.model)
    paragraphs = [p for p in args.text.read_text(encoding="utf-8").split("\n\n") if len(p) > 200][: args.rows]
    found = [torch.tensor(tokenizer(p)["input_ids"][: args.tokens]) for p in paragraphs]
    ids = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)  # [B, T]
    places, lengths = torch.arange(ids.shape[1]), torch.tensor([len(row) for row in found])
    mask = (places >= PROMPT) & (places < lengths[:, None])

    def measured(bfloat16: bool, narrow: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens, and the gradient of their sum."""
        model.zero_grad()
        embedding = model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda _, __, out: out.bfloat16() if narrow else out)
        with Placement(bfloat16=bfloat16).autocast():
            values = token_logprobs(model, ids, mask)
        values.sum().backward()
        hook.remove()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return values.detach()[mask], torch.cat(grads).double()

    exact, slope = measured(False, False)
    streams = {name: measured(True, name == "bfloat16") for name in ("float32", "bfloat16")}
    model.bfloat16()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].float()
        logits = hidden @ model.get_output_embeddings().weight.float().T
    sampler = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]]
    print(f"{int(mask.sum())} tokens; nats a token on average, gradient's relative error")
    for name, (values, grad) in streams.items():
        gap, apart = float((values - exact).abs().mean()), float((values - sampler).abs().mean())
        error = float((grad - slope).norm() / slope.norm())
        print(
            f"residual {name}: {gap:.4f} from float32, gradient {error:.1%}; {apart:.4f} from a bfloat16 sampler"
        )
    print(f"the bfloat16 sampler: {float((sampler - exact).abs().mean()):.4f} from float32")


if __name__ == "__main__":
    main()
