"""Options of plug-ins: what reaches a plug-in is what its own model made of the user's values."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from pydantic import BaseModel, Field, SecretBytes, SecretStr, computed_field, field_validator
from torch import nn
from wrong_clusterers import Fits, entry, right

from palette_core import (
    KMeansPalettizer,
    KMeansPalettizerConfig,
    ModuleKMeansPalettizerConfig,
    PalettizationSpec,
    read_checkpoint,
    save_checkpoint,
)
from palette_core.errors import PluginOptionsError
from palette_core.plugins.options import HIDDEN, validate_options


class Options(BaseModel, frozen=True, extra="forbid"):
    """All that does not survive being written down and read again."""

    token: SecretStr = Field(description="A secret.")
    key: SecretBytes = Field(default=b"", description="Another.")
    rounds: int = Field(default=1, alias="n-rounds", gt=0, description="Rounds.")
    hidden: str = Field(default="none", exclude=True, description="Not dumped.")
    blob: bytes = Field(default=b"", description="Bytes.")
    doubled: int = Field(default=0, description="Doubled when it is read.")

    @field_validator("doubled")
    @classmethod
    def _doubled(cls, value: int) -> int:
        return 2 * value

    @computed_field
    @property
    def product(self) -> int:
        return 2 * self.rounds


GIVEN = {
    "token": "s3cret",
    "key": "k3y",
    "n-rounds": 3,
    "hidden": "there",
    "blob": "äbc",
    "doubled": 4,
}


@pytest.fixture
def seen(register: Callable[..., None]) -> list[Options]:
    """What the plug-in was made with."""
    made: list[Options] = []

    def factory(options: Options) -> Fits:
        made.append(options)
        return Fits(right)

    register(entry(right, options=Options, factory=factory))
    return made


def palettizer(options: dict[str, object]) -> KMeansPalettizer:
    spec = PalettizationSpec(n_bits=2, algorithm="wrong", algorithm_options=options)
    config = KMeansPalettizerConfig(
        global_config=ModuleKMeansPalettizerConfig(op_state_spec={"weight": spec})
    )
    config = KMeansPalettizerConfig.from_dict(config.to_dict())
    return KMeansPalettizer(nn.Sequential(nn.Linear(8, 8)).eval(), config)


def test_a_plug_in_gets_what_was_written(seen) -> None:
    palettizer(GIVEN).prepare((torch.ones(1, 8),))
    (options,) = seen
    assert options.token.get_secret_value() == "s3cret"
    assert options.key.get_secret_value() == b"k3y"
    assert (options.rounds, options.product, options.hidden) == (3, 6, "there")
    assert (options.blob, options.doubled) == ("äbc".encode(), 8)


def test_workers_get_the_same(seen) -> None:
    (plan,) = palettizer(GIVEN).make_plan((torch.ones(1, 8),))
    (again,) = pickle.loads(pickle.dumps([plan.algorithm_options]))
    assert again == Options(**GIVEN)
    assert again.token.get_secret_value() == "s3cret"


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": ["s3cret"]},
        {"token": "s3cret", "key": {"k": "s3cret"}},
        {"key": "s3cret"},
        {"token": "s3cret", "n-rounds": 0},
        {"token": "s3cret", "rounds": 2},
    ],
)
def test_no_message_shows_a_secret(seen, wrong) -> None:
    with pytest.raises(PluginOptionsError) as caught:
        palettizer(wrong).prepare((torch.ones(1, 8),))
    assert "s3cret" not in str(caught.value)
    assert "options: token, key, n-rounds, hidden, blob, doubled" in str(caught.value)


def test_a_validator_of_the_whole_that_fails_shows_no_secret() -> None:
    class Whole(BaseModel, frozen=True, extra="forbid"):
        token: SecretStr
        rounds: int = 1

        def model_post_init(self, context: object) -> None:
            raise ValueError("these do not fit together")

    with pytest.raises(PluginOptionsError, match="these do not fit together") as caught:
        validate_options(entry(right, options=Whole), {"token": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_values_that_are_no_secret_are_shown() -> None:
    record = entry(right, options=Options)
    with pytest.raises(PluginOptionsError, match=r"n-rounds=-7: .* greater than 0"):
        validate_options(record, {"token": "s3cret", "n-rounds": -7})


def test_no_file_that_tells_its_config_tells_a_secret(seen, tmp_path) -> None:
    made = palettizer(GIVEN)
    path = save_checkpoint(made.prepare((torch.ones(1, 8),)), tmp_path / "m.safetensors")
    assert b"s3cret" not in path.read_bytes()
    assert b"k3y" not in path.read_bytes()
    (origin,) = read_checkpoint(path).origins.values()
    spec = origin.source.config["kmeans_palettization_config"]["global_config"]["op_state_spec"]
    options = spec["weight"]["algorithm_options"]
    assert options == {**GIVEN, "token": HIDDEN, "key": HIDDEN}


class Wordy(BaseModel, frozen=True, extra="forbid"):
    names: tuple[str, ...] = Field(default=(), alias="of-them")
    sizes: tuple[int, ...] = ()
    name: str = ""


def test_a_single_word_stands_for_a_sequence_of_one() -> None:
    record = entry(right, options=Wordy)
    made = validate_options(record, {"of-them": "logits", "name": "it", "sizes": [3]})
    assert (made.names, made.name, made.sizes) == (("logits",), "it", (3,))
    with pytest.raises(PluginOptionsError, match="sizes='3'"):
        validate_options(record, {"sizes": "3"})
