"""stllava: a general vision-language model becomes a medical one by asking, answering, being judged and learning.

The Python API has the command line's verbs and nouns: `stllava.ask(AskOptions(...), policy=..., ...)` is `stllava ask`.
`__init__.pyi` lists all of it, for type checkers and for readers. Names load on first use, so that `import stllava` is
quick and needs no torch.
"""

import warnings
from importlib.metadata import version

import lazy_loader

# tqdm, which transformers brings, says so in every notebook without ipywidgets; none of its bars are shown here.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = version("stllava")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
