"""Commands as functions, for notebooks: `openprime.rl("configs/rl/tiny.yaml", steps=5, policy={"lr": 1e-4})`.

Settings are those of the command line: a YAML file (or a configuration object) and keywords over it, where a section is
a table. Each function returns when the command has ended, says on the way what the command says, and raises what is
wrong; the stop button saves the run and raises `Interrupted`, and `resume=True` goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, TypeVar

from pydantic import BaseModel

from openprime.config import (
    FolderConfig,
    GenerateConfig,
    OfflinePRMConfig,
    RLConfig,
    SFTConfig,
    build,
    find_config,
    merge,
    read_config,
    tags_in,
)
from openprime.types import UserError, Verifier

Schema = TypeVar("Schema", bound=FolderConfig)
Reward = Callable[..., Any]
"""(prompts, completions, **columns) -> a list of outcomes in [0, 1], one a completion."""


@dataclass(frozen=True)
class Result:
    """What a command has left in its folder."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row a step, those of metrics.jsonl; none of `generate`."""
        return self._rows("metrics")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Sampled responses of `rl` with the rewards of their tokens, those of samples.jsonl."""
        return self._rows("samples")

    @property
    def responses(self) -> list[dict[str, Any]]:
        """A row a prompt with its judged `responses`, those that `generate` writes."""
        return self._rows("responses")

    def _rows(self, name: str) -> list[dict[str, Any]]:
        from openprime.run.jsonl import read_jsonl

        return read_jsonl(self.folder / f"{name}.jsonl")


def sft(config: str | Path | SFTConfig = "", **settings: Any) -> Result:
    """`openprime sft`: fine-tune on demonstrations, or make a small model; it is in the folder's `model`."""
    from openprime.commands.sft import train

    return run(train, configure(SFTConfig, config, settings))


def generate(
    config: str | Path | GenerateConfig = "", *, reward: Reward | None = None, **settings: Any
) -> Result:
    """`openprime generate`: sample N responses to each prompt and judge them, by `reward` if given (see `rl`)."""
    from openprime.commands.generate import generate

    verifiers, over = verifiers_of(reward, settings, "data")
    return run(generate, configure(GenerateConfig, config, over), verifiers)


def prm(config: str | Path | OfflinePRMConfig = "", **settings: Any) -> Result:
    """`openprime prm`: train a PRM on judged responses; it is in the folder's `prm`."""
    from openprime.commands.train_prm import train

    return run(train, configure(OfflinePRMConfig, config, settings))


def rl(config: str | Path | RLConfig = "", *, reward: Reward | None = None, **settings: Any) -> Result:
    """`openprime rl`: reinforcement learning; the folder has `model`, and with PRIME `prm`.

    `reward` judges responses in the place of `data.verifier` and `eval_data.verifier`: a function with the signature
    (prompts, completions, **columns) -> list of float, as `verifiers.user.load_user_verifier` says, from a cell or from
    anywhere. It runs in this process, between the model's steps, and may read and write what it likes here. Nothing
    limits its time: `verify.seconds` and the processes of the pool are for verifiers that have a name,
    `data={"verifier": "my_reward:score"}`.
    """
    from openprime.prime.loop import train

    verifiers, over = verifiers_of(reward, settings, "data", "eval_data")
    return run(train, configure(RLConfig, config, over), verifiers)


def run(command: Callable[..., None], config: FolderConfig, *arguments: Any) -> Result:
    """Run a command, and let go of its folder however it ends."""
    from openprime.run.lock import release

    try:
        command(config, *arguments)
    finally:
        release()
    return Result(Path(config.out))


def configure(schema: type[Schema], config: str | Path | Schema, settings: Mapping[str, Any]) -> Schema:
    """The configuration with the settings over it. Raises UserError, which names what is wrong with them."""
    values = {key: plain(value) for key, value in settings.items()}
    tags = tags_in(values)
    if isinstance(config, schema):
        base = build(schema, config.model_dump(), tags, "the configuration")
    elif not isinstance(config, str | Path):
        raise UserError(
            f"the configuration is the name of a YAML file or a {schema.__name__}, not {type(config).__name__}; "
            "settings are keywords, **{...} those of a dict"
        )
    elif str(config):
        base = read_config(schema, find_config(str(config)), tags)
    else:
        base = build(schema, {}, tags)
    return build(schema, merge(base.model_dump(), values), where="the settings")


def plain(value: Any) -> Any:
    """A setting as YAML has it: a path is its text, a section its table."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def verifiers_of(
    reward: Reward | None, settings: Mapping[str, Any], *sections: str
) -> tuple[dict[str, Verifier], dict[str, Any]]:
    """The verifier of a function by its name, and the settings that let it judge; raises UserError for none."""
    from openprime.verifiers.user import user_verifier

    if reward is None:
        return {}, dict(settings)
    if not callable(reward):
        raise UserError(
            f"reward is a function (prompts, completions, **columns) -> list of float, not {reward!r}; the verifiers "
            'that have a name are set as data={"verifier": ...}'
        )
    own = {section: plain(settings.get(section, {})) for section in sections}
    if isinstance(own["data"], Mapping) and own["data"].keys() & {"verifier", "verifier_field"}:
        raise UserError("reward and data.verifier both say who judges: leave one out")
    kind = reward if isinstance(reward, FunctionType | MethodType | type) else type(reward)
    name = f"{kind.__module__}:{kind.__qualname__}"
    over = {section: {"verifier": name, "verifier_field": ""} for section in sections}
    return {name: user_verifier(reward, name)}, merge(over, dict(settings) | own)
