"""manifest.json: what a corpus was made of and with, which shards are finished, and whether a run may go on."""

import json

from cdgen.errors import CorpusError, InputError

NAME = "manifest.json"
FORMAT_VERSION = 1


def new(settings, models, seeds):
    """A manifest without shards. Arguments are JSON objects; see :func:`cdgen.corpus.writer.write_corpus`."""
    return {
        "format_version": FORMAT_VERSION,
        "complete": False,
        "settings": settings,
        "models": models,
        "seeds": seeds,
        "runs": [],  # what the shards were computed with: versions, implementation, threads
        "counts": {},
        "shards": [],
    }


def read(folder):
    """The manifest of an :class:`~cdgen.storage.folder.OutputFolder`, or None where there is none."""
    path = folder.path / NAME
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{path}: cannot be read: {error}; choose another folder, or --no-resume to write it anew"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CorpusError(
            f"{path}: not a manifest of format version {FORMAT_VERSION}; choose another folder, or --no-resume"
        )
    return manifest


def write(folder, manifest):
    shards = manifest["shards"]
    manifest["counts"] = {
        "shards": len(shards),
        "documents": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "new_tokens": sum(shard["new_tokens"] for shard in shards),
    }
    folder.write(NAME, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def check_same(folder, old, new):
    """Raise InputError naming what first differs between this run and the one that began the folder."""

    def compared(manifest):
        models = {role: model and model["fingerprint"] for role, model in manifest["models"].items()}
        return {**manifest["settings"], **models, "seeds": manifest["seeds"]["fingerprint"]}

    # through JSON, so that both sides have JSON's types
    before, now = compared(old), compared(json.loads(json.dumps(new)))
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{folder.path}: was begun with {name} = {before.get(name)}, this run has {name} = {now.get(name)}; "
                "use the same, another folder, or --no-resume to write it anew"
            )


def finished(folder, manifest):
    """The finished shards' entries by number, each file checked; entries whose files are gone are left out.

    Raises:
        CorpusError: a file is not what was written.
    """
    found = {}
    for shard in manifest["shards"]:
        files = [shard, *([shard["documents"]] if "documents" in shard else [])]
        digests = [folder.sha256(file["name"]) for file in files]
        for file, digest in zip(files, digests, strict=True):
            if digest not in (None, file["sha256"]):
                raise CorpusError(
                    f"{folder.path / file['name']}: is truncated or altered (its checksum differs); "
                    "delete it and run again to rewrite it"
                )
        if None not in digests:
            found[shard["number"]] = shard
    return found


def add_run(manifest, run):
    """Number of `run` (versions and implementation) among the manifest's runs, added where it is new.

    Returns:
        (number, names of what differs from the run before)
    """
    run = json.loads(json.dumps(run))
    last = manifest["runs"][-1] if manifest["runs"] else run
    changed = [name for name in run if run[name] != last.get(name)]
    if run not in manifest["runs"]:
        manifest["runs"].append(run)
    return manifest["runs"].index(run), changed
