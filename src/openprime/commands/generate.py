"""`openprime generate`: N judged responses to each prompt of a data set."""

from collections import Counter
from collections.abc import Callable, Mapping

from openprime.config import GenerateConfig
from openprime.data.readers import identity, read_prompts
from openprime.data.records import group_row, row_number, vocabulary_id
from openprime.engines.make import make_engine
from openprime.models.hub import load_tokenizer
from openprime.models.placement import Placement
from openprime.prime.rollouts import derive_seed, sample_and_verify
from openprime.run.console import plain_console
from openprime.run.folder import check_folder, made_of, open_folder
from openprime.run.jsonl import fill_jsonl
from openprime.types import Sampling, Verifier
from openprime.verifiers.pool import Pool


def generate(config: GenerateConfig, verifiers: Mapping[str, Verifier] | None = None) -> None:
    """Sample and judge; leaves responses.jsonl in `config.out`, a line a prompt, in the order of the data.

    `verifiers`: by name, of this process itself (`Pool`).
    """
    config.check()
    check_folder(config, "generate")
    place = Placement.of(config)  # what is wrong with the device is said at once
    console = plain_console()

    def say(note: str) -> None:
        console.print(f"note: {note}", markup=False, highlight=False)

    with Pool(config.verify, here=verifiers) as pool:
        pool.prepare([] if config.data.verifier_field else [config.data.verifier])
        tokenizer = load_tokenizer(config.model)
        data = read_prompts(config.data, tokenizer)
        for note in (*place.notes, *data.notes):
            say(note)
        prompts = pool.admit(data.prompts, say)
        del data  # rows with tests, which `prompts` has packed
        longest = max(len(prompt.token_ids) for prompt in prompts) + config.max_response_tokens
        engine = make_engine(config, tokenizer, config.sequences, longest)
        sampling = Sampling(config.responses, config.max_response_tokens, config.temperature)
        vocabulary = vocabulary_id(tokenizer)
        seen = [identity(prompt.id, prompt.answer, prompt.token_ids) for prompt in prompts]
        path = open_folder(config, "generate", seen, grows=True) / "responses.jsonl"

        def make(items: range, check: Callable[[], None]) -> list[dict]:
            seed = derive_seed(config.seed, "generate", items.start)
            chosen = prompts[items.start : items.stop]
            groups = sample_and_verify(engine, pool, chosen, sampling, seed, check)
            return [group_row(row_number(g.prompt), g, config.data, vocabulary) for g in groups]

        console.print(f"{len(prompts)} prompts, {config.responses} responses each", highlight=False)
        rows = fill_jsonl(path, [{"item": row_number(p)} for p in prompts], "generate", console, make)
        with made_of(path):
            reasons = Counter(response["reason"] for row in rows for response in row["responses"])
        said = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        console.print(f"{sum(reasons.values())} responses: {said}\nwritten: {path}", highlight=False)
