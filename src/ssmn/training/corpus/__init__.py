"""The text corpus: one command that fetches, cleans, splits and records permissively licensed text.

`python -m ssmn.training.corpus --out data/text`; the recipe is `sources.toml` in this folder.
"""

from ssmn.training.corpus.build import build_corpus
from ssmn.training.corpus.documents import Document, Member
from ssmn.training.corpus.recipe import Source, load_recipe
from ssmn.training.corpus.splits import SplitConfig

__all__ = ["Document", "Member", "Source", "SplitConfig", "build_corpus", "load_recipe"]
