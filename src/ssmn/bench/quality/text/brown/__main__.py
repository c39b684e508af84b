"""`python -m ssmn.bench.quality.text.brown`: fetches the Brown corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssmn.bench.quality.text.brown import fetch, read


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ssmn.bench.quality.text.brown", description="Fetches the Brown corpus."
    )
    parser.add_argument("--out", type=Path, default=Path("data/brown"), help="folder for its files")
    folder = parser.parse_args().out
    fetch(folder)
    documents = read(folder)
    print(f"{len(documents)} documents, {sum(map(len, documents)):,} words in {folder}")


if __name__ == "__main__":
    main()
