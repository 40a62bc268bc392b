"""The folder of a comparison: comparison.json, and its tables as Markdown and LaTeX."""

import hashlib
import os
from pathlib import Path

from cdgen.errors import CorpusError
from cdgen.evaluation.comparison.data import Comparison
from cdgen.evaluation.comparison.tables import as_latex, as_markdown
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder

NAMES = ("comparison.md", "comparison.tex")


def write(comparison: Comparison, out: str | os.PathLike[str]) -> None:
    """Write a comparison to a folder, replacing an earlier comparison.

    Args:
        comparison: the comparison.
        out: the folder.
    Raises:
        CorpusError: the folder cannot be written or holds something else, or a file that would be replaced was not
            written by cdgen, or was changed since.
    """
    contents = dict(zip(NAMES, (as_markdown(comparison).encode(), as_latex(comparison).encode()), strict=True))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    with OutputFolder(out) as folder:
        manifests.check_no_other_kind(folder.path, manifests.COMPARISON)
        before = manifests.read(folder.path, manifests.COMPARISON, "move it, or choose another folder")
        written = before["files"] if before else {}
        # After an interruption, a table may be newer than the comparison.json that lists it, or there is none yet.
        new = {name for name in NAMES if (folder.path / name).is_file() and folder.sha256(name) == digests[name]}
        manifests.check_free(folder.path, NAMES, {*written, *new})
        for name in NAMES:
            if name not in new and folder.sha256(name) not in (None, written.get(name)):
                raise CorpusError(
                    f"{folder.path / name}: was changed since cdgen wrote it; move it, or choose another folder"
                )
        manifest = manifests.new(manifests.COMPARISON) | comparison.as_json() | {"files": digests}
        folder.write_all({**contents, manifests.FILE_NAMES[manifests.COMPARISON]: manifests.encode(manifest)})


def read(folder: Path) -> Comparison | None:
    """Return the comparison in a folder, or None if it has none.

    Raises:
        CorpusError: comparison.json is damaged.
    """
    manifest = manifests.read(folder, manifests.COMPARISON)
    try:
        return None if manifest is None else Comparison.from_json(manifest)
    except ValueError as error:
        path = folder / manifests.FILE_NAMES[manifests.COMPARISON]
        raise CorpusError(f"{path}: is damaged: {error}; rerun cdgen compare") from error
