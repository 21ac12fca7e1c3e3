"""The configuration reference says everything about every field, and takes it from the models."""

from __future__ import annotations

import importlib.util
import re
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import BaseModel, Field

import palette_core
from palette_core.plugins.catalog import get_catalog

DOCS = Path(__file__).parents[2] / "docs"
MODELS = (
    "KMeansPalettizerConfig",
    "ModuleKMeansPalettizerConfig",
    "OpKMeansPalettizerConfig",
    "PalettizationSpec",
    "QuantizationSpec",
    "PerTensorGranularity",
    "PerGroupedChannelGranularity",
    "PATSchedule",
)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen", DOCS / "gen" / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(generator: ModuleType) -> str:
    text = (DOCS / "configuration.md").read_text(encoding="utf8")
    return generator.on_page_markdown(text, page=None, config=None, files=None)


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """Cells of the table below a heading, by the first of each row."""
    section = re.split(r"^### ", page, flags=re.MULTILINE)
    found = [text for text in section if text.startswith(f"{heading}\n")]
    assert len(found) == 1, f"{len(found)} sections {heading}"
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in found[0].splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.parametrize("name", MODELS)
def test_every_field_has_a_row_with_type_default_and_meaning(page: str, name: str) -> None:
    model = getattr(palette_core, name)
    rows = rows_of(page, name)
    assert list(rows) == list(model.model_fields)
    for field, cells in rows.items():
        kind, default, meaning = cells
        assert kind, field
        assert (default == "required") == model.model_fields[field].is_required(), field
        assert len(meaning.split()) > 1, field


@pytest.mark.parametrize(
    ("model", "field", "kind", "default"),
    [
        ("PalettizationSpec", "n_bits", "`1` | `2` | `3` | `4` | `6` | `8`", "`4`"),
        ("PalettizationSpec", "cluster_dim", "int > 0", "`1`"),
        ("PalettizationSpec", "enable_per_channel_scale", "bool", "`false`"),
        ("PalettizationSpec", "lut_qspec", "[QuantizationSpec](#quantizationspec) | `null`", None),
        ("PerGroupedChannelGranularity", "group_size", "int > 0", "required"),
        ("QuantizationSpec", "dtype", None, "`int8`"),
        ("QuantizationSpec", "granularity", None, "`{type: per_tensor}`"),
        ("ModuleKMeansPalettizerConfig", "enable_fast_kmeans_mode", None, "`true`"),
        ("ModuleKMeansPalettizerConfig", "rounding_precision", None, "`4`"),
    ],
)
def test_known_rows(page: str, model: str, field: str, kind: str | None, default: str) -> None:
    cells = rows_of(page, model)[field]
    if kind is not None:
        assert cells[0].replace("\\|", "|") == kind
    if default is not None:
        assert cells[1] == default


def test_every_built_in_plugin_and_option_is_there(page: str) -> None:
    for registry in get_catalog().registries():
        for item in registry:
            if item.distribution.name != "palette-core":
                assert f"**`{item.entry.name}`**" not in page
                continue
            assert f"**`{item.entry.name}`**: " in page
            for option in item.entry.options.model_fields:
                assert f"| `{option}` |" in page


def test_links_inside_the_reference_lead_somewhere(page: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\(#([\w-]+)\)", page)) <= headings


def test_a_field_described_nowhere_is_an_error(generator: ModuleType) -> None:
    class Silent(BaseModel):
        """Says nothing of its field.

        Attributes:
            loud: is described,
                over two lines.
        """

        loud: int = 1
        quiet: int = 2

    with pytest.raises(ValueError, match=r"'quiet' of .*Silent is described nowhere"):
        generator.model_section(Silent)


def test_an_enumeration_is_explained_value_by_value(generator: ModuleType, page: str) -> None:
    assert "### QuantizationScheme\n" in page

    class Ways(Enum):
        """Either ``there`` or elsewhere."""

        THERE = "there"
        BACK = "back"

    with pytest.raises(ValueError, match=r"Ways.BACK.* is described nowhere"):
        generator.enum_section(Ways)


def test_a_change_of_a_model_changes_the_page(generator: ModuleType) -> None:
    class Options(BaseModel):
        """Options.

        Attributes:
            steps: how many,
                at most.

        Raises:
            ValueError: never.
        """

        steps: int = Field(default=3, ge=1, le=9)
        mode: Literal["fast", "exact"] = Field(default="fast", description="Which way.")
        names: dict[str, list[int] | None] = Field(default_factory=dict, description="By name.")

    assert generator.model_section(Options) == (
        "### Options\n\nOptions.\n\n"
        "| field | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `steps` | int ≥ 1, ≤ 9 | `3` | how many, at most. |\n"
        "| `mode` | `fast` \\| `exact` | `fast` | Which way. |\n"
        "| `names` | mapping from str to list of int \\| `null` | `{}` | By name. |"
    )
