"""Between a palettized folder and the loader of transformers.

To the loader, each weight that is made of palettized tensors is one tensor under a token; the
converter here takes it, and makes the weight from the folder. Names, stacks of experts, devices,
dtypes and ties are the loader's business, as with dense folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from palette_core.errors import CheckpointError
from palette_core.storage import PackedWeight, open_checkpoint
from palette_core.tensors import PalettizedTensor
from transformers_bridge.fusing import PARTS, fused
from transformers_bridge.routing import Recipe, recipes

_TOKEN = "palette:"
PART = f"{_TOKEN}part"  # what belongs to a tensor that goes by another part
CARRIER = "lut"  # the part that every palettized tensor has, and a small one
_TABLES = ("lut", "lut_scale", "lut_zero_point", "scale")


class Folder:
    """An opened folder, and what each weight of a model is made of there.

    Args:
        path: of the folder.
        conversions: what transformers does to a dense one.
        model: with its weights on the meta device.
        keep_packed: whether weights stay packed in memory.

    Attributes:
        packed: packed weights by name in the model, as far as they have been made.
        decoded: names of weights that were to stay packed and could not.

    Raises:
        CheckpointError: a file is no whole packed checkpoint, a dense tensor is damaged, or the
            folder holds what no model of transformers has.
    """

    def __init__(self, path: Any, conversions: list[Any], model: Any, *, keep_packed: bool) -> None:
        self._reader = open_checkpoint(path)
        self.keep_packed = keep_packed
        self.packed: dict[str, PackedWeight] = {}
        self.decoded: list[str] = []
        if self._reader.aliases or self._reader.values:
            name = next(iter([*self._reader.aliases, *self._reader.values]))
            self.close()
            raise CheckpointError(
                f"{path}: {name} is another name of a tensor, or no tensor; such a file was "
                "saved from a model in memory, and load_checkpoint reads it"
            )
        for name in self._reader.dense_names:
            self._reader.dense(name)  # by its checksum, for which transformers does not look
        names = self._reader.palettized_names
        self.recipes = {
            recipe.target: recipe
            for recipe in recipes(names, self._reader.dense_names, conversions, model)
        }
        tied = model.all_tied_weights_keys
        self._tied = {*tied, *tied.values()}

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def routes(self) -> dict[str, str]:
        """Return tokens by the names of the tensors in the files."""
        found = {}
        for number, recipe in enumerate(self.recipes.values()):
            token = f"{_TOKEN}{number}"
            for source in recipe.sources:
                if not source.is_palettized:
                    found[source.name] = token
                    continue
                parts = (*self._reader.form(source.name).parts, *_TABLES)
                found |= dict.fromkeys((f"{source.name}.{part}" for part in parts), PART)
                found[f"{source.name}.{CARRIER}"] = token
        return found

    def make(
        self, recipe: Recipe, dtype: torch.dtype, device: torch.device, model: Any, told: Any
    ) -> dict[str, Tensor]:
        """Return weights of the model: dense, or parameters that stand for packed ones.

        Raises:
            CheckpointError: a tensor is damaged.
        """
        if self.keep_packed:
            weight = self._pack(recipe, model)
            if weight is not None:
                self.packed[recipe.target] = weight.to(device=device, dtype=dtype)
                return {recipe.target: self._standing_for(recipe.target, dtype, device)}
            self.decoded.append(recipe.target)
        made = recipe.make(self._dense, model, told)
        return {name: tensor.to(device=device, dtype=dtype) for name, tensor in made.items()}

    def _dense(self, name: str) -> Tensor:
        if name in self._reader.palettized_names:
            return self._reader.palettized(name).decode()
        return self._reader.dense(name)

    def _pack(self, recipe: Recipe, model: Any) -> PackedWeight | None:
        names = [source.name for source in recipe.sources]
        if not all(source.is_palettized for source in recipe.sources):
            return None
        forms = {self._reader.form(name).name for name in names}
        origin = self._reader.origins.get(names[0])
        whole: PalettizedTensor | None
        if recipe.converter is None:
            whole = self._reader.palettized(names[0])
        elif len(forms) > 1:
            return None
        else:
            whole = fused(recipe, {n: self._reader.palettized(n) for n in names}, model)
        form = self._reader.form(names[0])
        return None if whole is None else PackedWeight(whole, form, origin)

    def _standing_for(self, target: str, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
        """Return a parameter of the weight's shape and no size, until the weight takes its place.

        transformers ties two weights that it finds in a folder where they are equal, so these are
        where the weights are.
        """
        weight, number = self.packed[target], 0
        if target in self._tied:
            others = (name for name in self.packed if name in self._tied)
            number = 1 + next(
                place for place, name in enumerate(others) if _equal(self.packed[name], weight)
            )
        one = torch.full((), number, dtype=dtype, device=device)
        return nn.Parameter(one.expand(weight.palettized_shape()))


def _equal(one: PackedWeight, other: PackedWeight) -> bool:
    if one is other:
        return True
    a, b = one.palettized(), other.palettized()
    if (a.n_bits, a.axis, a.shape) != (b.n_bits, b.axis, b.shape):
        return False
    pairs = [(getattr(a, part), getattr(b, part)) for part in PARTS]
    return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)


class Tokens(WeightRenaming):  # type: ignore[misc]
    """The first renaming: of all parts of palettized tensors, to tokens.

    Args:
        routes: tokens by names.
    """

    def __init__(self, routes: Mapping[str, str]) -> None:
        super().__init__(_TOKEN, _TOKEN)
        self.routes = routes

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Return the token of a part, and other names as they are."""
        return self.routes.get(source_key, source_key), None


class _Nothing(ConversionOps):  # type: ignore[misc]
    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return input_dict


class Maker(WeightConverter):  # type: ignore[misc]
    """The first converter: from tokens to weights.

    Args:
        folder: makes the weights.

    Attributes:
        dtype: of the weight, which transformers finds out in between.
    """

    dtype: torch.dtype

    def __init__(self, folder: Folder) -> None:
        super().__init__([_TOKEN], [_TOKEN], [_Nothing()])
        self.folder = folder
        self._targets = [*folder.recipes]

    def __deepcopy__(self, memo: Any) -> Maker:
        """Return another one for the same folder: there is one for each weight."""
        return Maker(self.folder)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Return the name of the weight that a token stands for."""
        # Renamings in between may have put a prefix in front.
        found = re.search(rf"{_TOKEN}(\d+)$", source_key)
        return (self._targets[int(found[1])], _TOKEN) if found else (source_key, None)

    def convert(
        self, layer_name: str, model: Any = None, loading_info: Any = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the weights that come of a recipe."""
        (tensors,) = self.materialize_tensors().values()
        recipe = self.folder.recipes[layer_name]
        return self.folder.make(recipe, self.dtype, tensors[0].device, model, loading_info)
