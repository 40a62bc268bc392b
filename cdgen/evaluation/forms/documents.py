"""The documents of a corpus that a task names."""

from collections.abc import Iterator

from cdgen.corpus.find import find
from cdgen.corpus.records import format_of, records
from cdgen.values import expanded


def documents(path: str) -> Iterator[tuple[str, str]]:
    """Iterate over the names and texts of the documents of a corpus, without empty ones.

    Args:
        path: a corpus as :func:`cdgen.corpus.find.find` takes it, of which the test split is read if there is one, or a
            folder of .txt files, each of which is a document.
    Raises:
        InputError: there is no such corpus, or a text cannot be read.
        CorpusError: a file of the corpus was altered.
    """
    folder = expanded(path)
    files = sorted(each for each in folder.iterdir() if format_of(each)) if folder.is_dir() else []
    if files and all(format_of(file) == "txt" for file in files):
        found = ((file.name, text) for file in files for _, text in records(file))
    else:
        found = ((str(number), text) for number, text in enumerate(find(path, "test").texts(), 1))
    return ((name, text) for name, text in found if text.strip())
