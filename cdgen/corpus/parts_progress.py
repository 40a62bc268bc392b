"""Show how far the tasks that write the parts of a corpus have come."""

from pathlib import Path

from cdgen.corpus import journal
from cdgen.corpus.manifest import NAME, ShardEntry
from cdgen.corpus.parts import part_folders
from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Progress


class PartsProgress:
    """Reads the manifests and journals of parts, and shows what is new.

    Args:
        corpus: the corpus's folder.
        progress: receives the documents that are finished, and a note for each shard.
    Attributes:
        documents: number of finished documents in all parts.
    """

    def __init__(self, corpus: Path, progress: Progress) -> None:
        self._corpus, self._progress = corpus, progress
        self._manifests: dict[Path, tuple[int, Manifest]] = {}  # time of change and content
        self._seen: set[int] = set()  # numbers of finished shards
        self._new_shards: list[ShardEntry] = []  # those that no note has been shown for
        self.documents = self._count()

    def update(self) -> None:
        """Show what has been written since the last call."""
        documents = self._count()
        if documents > self.documents:  # fewer if a shard was written after its part's manifest was read
            self._progress.advance(documents - self.documents)
            self.documents = documents
        for shard in self._new_shards:
            self._progress.note(f"{shard['name']}: {shard['rows']} documents, {shard['new_tokens']} new tokens")
        self._new_shards.clear()

    def _count(self) -> int:
        """Return the number of finished documents in all parts, and keep the entries of new shards."""
        found = 0
        for path in part_folders(self._corpus):
            manifest = self._manifest(path)
            done = {shard["number"]: shard["rows"] for shard in manifest["shards"]} if manifest else {}
            found += sum(done.values()) + journal.count_documents(path, done)
        return found

    def _manifest(self, part: Path) -> Manifest | None:
        """Return the manifest of a part, which is read again only if it has changed."""
        try:
            changed = (part / NAME).stat().st_mtime_ns
            if part not in self._manifests or self._manifests[part][0] != changed:
                manifest = manifests.read(part, manifests.GENERATED)
                assert manifest is not None, "the file is there"
                self._manifests[part] = changed, manifest
                self._add_new(manifest)
        except (OSError, CorpusError):
            return None  # the task reports what is wrong with it
        return self._manifests[part][1]

    def _add_new(self, manifest: Manifest) -> None:
        self._new_shards += [shard for shard in manifest["shards"] if shard["number"] not in self._seen]
        self._seen.update(shard["number"] for shard in manifest["shards"])
