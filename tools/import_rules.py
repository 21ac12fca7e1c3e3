"""A contract for import-linter: what plug-ins may import of the core, not what they may not.

A list of what is forbidden forgets every module that is added later.
"""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class AllowedContract(Contract):
    """Packages import of a library only the modules that are listed.

    Options:
        source_packages: the packages; each may import all of itself.
        library: root package of the library.
        allowed_modules: what they may import of it: the modules themselves, not what is in them.
    """

    type_name = "allowed"

    source_packages = fields.ListField(subfield=fields.StringField())
    library = fields.StringField()
    allowed_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the imports of modules that are not listed."""
        options: Any = self
        strays = [
            graph.get_import_details(importer=importer, imported=imported)[0]
            for package in options.source_packages
            for importer in sorted({package, *graph.find_descendants(package)})
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if _within(imported, options.library)
            and not _within(imported, package)
            and imported not in options.allowed_modules
        ]
        return ContractCheck(kept=not strays, metadata={"strays": strays})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line per import."""
        for stray in check.metadata["strays"]:
            output.print_error(
                f"{stray['importer']}:{stray['line_number']} imports {stray['imported']}",
                bold=False,
            )


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
