"""Operations that the converter gets wrong by itself: after rewrites they are as in torch."""

from __future__ import annotations

import openvino_support as support
import pytest

from export_rewrites.programs import PROGRAMS
from openvino_backend.backend import OpenVINOBackend
from openvino_backend.options import OpenVINOOptions

NAMES = ("arange, step", "var of all", "var, correction=2", "searchsorted")


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_as_in_torch(name, tmp_path):
    program = next(program for program in PROGRAMS if program.name == name)
    model = program.make()
    path = OpenVINOBackend(OpenVINOOptions()).export(model, program.inputs, tmp_path / "m.xml")
    wanted = model(*program.inputs)
    assert support.difference(support.run_file(path, *program.inputs), [wanted]) <= 1e-5
