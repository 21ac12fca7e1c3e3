"""Which algorithm, which LUT quantizer, which blocks: what one spec implies for one shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from palette_core.config.spec import PalettizationSpec, QuantizationSpec
from palette_core.config.vectors import VectorKMeansConfig
from palette_core.errors import (
    DuplicatePluginError,
    IncompatibleShapeError,
    PlanError,
    PluginOptionsError,
)
from palette_core.plugins import ClustererEntry, Refusal, TensorFacts
from palette_core.plugins.catalog import Catalog
from palette_core.plugins.checked.clusterers import vector_options
from palette_core.plugins.checked.granularities import block_shape
from palette_core.plugins.checked.stored_forms import make_stored_form
from palette_core.plugins.options import validate_options
from palette_core.plugins.registries import Registered, Registry
from palette_core.tensors.dtypes import dtype_name
from palette_core.tensors.layout import BlockLayout
from palette_core.tensors.scales import scale_shape


def lay_out(
    shape: tuple[int, ...], spec: PalettizationSpec, axis: int, tensor: str = "a weight"
) -> BlockLayout:
    """Return the blocks that ``spec`` makes of a weight whose output channels are on ``axis``.

    Raises:
        IncompatibleShapeError: naming shape and axis.
        PlanError: the granularity fails, or returns what is no block; naming ``tensor``.
    """
    if spec.is_scaled:
        scale_shape(shape, axis, spec.scale_block_size)
    block = block_shape(spec.granularity, shape, axis, tensor)
    return BlockLayout(shape, block, spec.cluster_dim, axis)


def clusterer_for(spec: PalettizationSpec, catalog: Catalog) -> ClustererEntry:
    """Return the entry of the algorithm that ``spec`` names or implies.

    Raises:
        PlanError: the algorithm cannot do what the spec asks.
    """
    name = spec.algorithm or default_clusterer(spec.cluster_dim, catalog)
    entry = catalog.clusterers.get(name)
    vector = spec.cluster_dim > 1
    if not (entry.supports_vector if vector else entry.supports_scalar):
        able = [
            item.entry.name
            for item in catalog.clusterers
            if (item.entry.supports_vector if vector else item.entry.supports_scalar)
        ]
        kind = f"vectors (cluster_dim={spec.cluster_dim})" if vector else "scalars (cluster_dim=1)"
        raise PlanError(
            f"algorithm {name!r} does not take {kind}; these do: {', '.join(sorted(set(able)))}"
        )
    return entry


def clusterer_options(
    entry: ClustererEntry,
    spec: PalettizationSpec,
    vectors: VectorKMeansConfig | None,
    catalog: Catalog,
) -> BaseModel:
    """Return the validated options of an algorithm.

    Args:
        entry: the algorithm.
        spec: its own ``algorithm_options`` come first.
        vectors: settings of the module, which count for vectors alone.
        catalog: the installed plug-ins.

    Raises:
        PlanError: the algorithm does not take such settings, or not these.
        PluginOptionsError: options do not validate.
    """
    if vectors is None or spec.cluster_dim == 1:
        return validate_options(entry, spec.algorithm_options)
    settings = vector_options(catalog.clusterers.find(entry.name), vectors)
    if settings is None:
        able = [each.entry for each in catalog.clusterers if each.entry.vector_options is not None]
        raise PlanError(
            f"algorithm {entry.name!r} takes no vector_kmeans_config; these do: "
            f"{', '.join(sorted({each.name for each in able})) or 'none'}"
        )
    try:
        validate_options(entry, settings)
    except PluginOptionsError as error:
        raise PlanError(f"vector_kmeans_config: {error}") from None
    return validate_options(entry, {**settings, **spec.algorithm_options})


def default_clusterer(cluster_dim: int, catalog: Catalog) -> str:
    """Return the name of the default algorithm for points of so many coordinates.

    Raises:
        PlanError: none is; DuplicatePluginError: several are.
    """
    items = list(catalog.clusterers)
    if cluster_dim == 1:
        scalars = [item for item in items if item.entry.default_for_scalars]
        what = "algorithms are the default for scalars"
        return _only(scalars, what, "algorithm", catalog.clusterers)
    vectors = [item for item in items if item.entry.default_for_vectors]
    what = "algorithms are the default for vectors"
    return _only(vectors, what, "algorithm", catalog.clusterers)


def lut_quantizer_name(lut_qspec: QuantizationSpec | None, catalog: Catalog) -> str | None:
    """Return the name of the LUT quantizer that ``lut_qspec`` names or implies.

    Raises:
        PlanError: none is the default for the dtype, or the named one cannot make it.
    """
    if lut_qspec is None:
        return None
    registry = catalog.lut_quantizers
    able = [item for item in registry if dtype_name(lut_qspec.dtype) in item.entry.dtypes]
    name = lut_qspec.quantizer
    if name is None:
        default = [item for item in able if item.entry.is_default]
        what = f"LUT quantizers are the default for {dtype_name(lut_qspec.dtype)}"
        name = _only(default, what, "lut_qspec.quantizer", registry)
    entry = registry.get(name)
    if dtype_name(lut_qspec.dtype) not in entry.dtypes:
        raise PlanError(
            f"LUT quantizer {name!r} cannot make {dtype_name(lut_qspec.dtype)}; these can: "
            f"{', '.join(sorted(item.entry.name for item in able))}"
        )
    if lut_qspec.dtype.itemsize > 1:
        raise PlanError(
            f"LUT quantizer {name!r} makes {dtype_name(lut_qspec.dtype)}, and entries are stored "
            "in one byte; choose a dtype of 8 bits"
        )
    validate_options(entry, lut_qspec.quantizer_options)
    return name


def _only(items: list[Registered[Any]], what: str, field: str, registry: Registry[Any]) -> str:
    """Return the one name among those of defaults."""
    if len(items) == 1:
        name: str = items[0].entry.name
        return name
    names = ", ".join(f"{item.entry.name} ({item.distribution})" for item in items)
    listed = f": {names}" if items else registry.left_out()
    kind = DuplicatePluginError if items else PlanError
    raise kind(f"{len(items)} {what}{listed}; choose one by {field}")


def check_stored_form(facts: TensorFacts, catalog: Catalog) -> None:
    """Refuse a tensor that a stored form of its spec cannot hold.

    Raises:
        IncompatibleShapeError: saying why, and what it could.
        UnknownPluginError: nobody knows the form.
        CheckpointError: the form fails.
    """
    for form in facts.spec.stored_forms:
        refusal = make_stored_form(catalog, form).check_support(facts)
        if refusal is not None:
            raise IncompatibleShapeError(
                f"stored form {form!r} cannot hold it: {refusal.reason}"
                f"{nearest(facts.spec, refusal)}"
            )


def nearest(asked: PalettizationSpec, refusal: Refusal) -> str:
    """Return what a refusal would have instead of what was asked, as the end of a sentence."""
    if refusal.instead is None:
        return ""
    before = asked.model_dump(mode="json")
    given = refusal.instead.model_dump(mode="json")
    changed = {name: value for name, value in given.items() if value != before[name]}
    return f"; what works nearest to it: {changed}"
