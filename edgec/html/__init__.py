"""One page that a person can read: what a compilation did, as a file that loads nothing else.

:func:`order_page` checks that the page can be written and loads what it will show, before any work is done; what it
returns writes the page when the work is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.compiler import Compiled
    from edgec.html.story import Material
    from edgec.quantisation.layer_errors import LayerErrors

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Page:
    """A page to be written to ``path``."""

    path: Path
    material: Material

    def write_compiled(self, compiled: Compiled, progress: Progress | None = None) -> None:
        """Write the story of a compilation."""
        from edgec.html.page import write_page
        from edgec.html.story import gather

        quantisation = compiled.report.quantisation
        attempts = quantisation.attempts if quantisation else ()
        facts = compiled.report.as_dict()
        write_page(self.path, gather(compiled.path, facts, self.material, progress, attempts=attempts))

    def write_diff(self, artifact: Path, errors: LayerErrors, progress: Progress | None = None) -> None:
        """Write the story of an artifact whose layers were compared.

        Raises:
            EdgecError: it is no artifact, or its report is not beside it.
        """
        from edgec.compiler import manifest_path
        from edgec.html.page import write_page
        from edgec.html.story import gather

        try:
            facts = json.loads(manifest_path(artifact).read_text(encoding="utf-8"))
        except OSError as error:
            raise EdgecError(
                f"--report shows an artifact with the report that edgec compile writes beside it, and "
                f"'{manifest_path(artifact)}' cannot be read: {error.strerror}; compile again"
            ) from error
        write_page(self.path, gather(artifact, facts, self.material, progress, errors=errors))


def order_page(path: Path, model: Path, **sources: Any) -> Page:
    """The page of ``model`` and its samples: ``sources`` as for :meth:`edgec.html.story.Material.load`.

    Raises:
        EdgecError: the page could not be written, or the model or the samples cannot be read.
    """
    from edgec.html.page import check_page
    from edgec.html.story import Material

    check_page(path)
    return Page(path, Material.load(model, **sources))
