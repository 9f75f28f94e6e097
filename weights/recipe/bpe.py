"""The tokenizer: CLIP's byte-pair scheme (bytes as letters, `</w>` ends a word), its merges learnt from captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from weights.recipe.layout import write
from weights.recipe.scenes import COLOURS, LOOKS, SETTINGS
from weights.recipe.settings import TOKENS, Settings
from zs2.tokenizer import SPECIAL, Tokenizer, byte_letters


def learn(names: Sequence[str], settings: Settings, folder: Path) -> Tokenizer:
    """Learn a vocabulary from what captions are made of, and write `tokenizer/`."""
    letters = byte_letters()
    base = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    specials = [SPECIAL["bos_token"], SPECIAL["eos_token"]]
    # zs2's own splitting of a prompt into words, so that merges are learnt within what they are applied to
    plain = Tokenizer(base | {token: len(base) + i for i, token in enumerate(specials)}, [], {}, TOKENS).backend
    backend = Backend(BPE(unk_token=None, end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=settings.vocabulary, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    words = [*names, *(f"a {colour} background on" for colour in COLOURS), *SETTINGS, *LOOKS]
    backend.train_from_iterator([*words, *(w for w in words[len(names) :] for _ in range(50))], trainer)
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in json.loads(backend.to_str())["model"]["merges"]]
    tokens = [*base, *dict.fromkeys("".join(pair) for pair in merges if "".join(pair) not in base), *specials]
    vocab = {token: i for i, token in enumerate(tokens)}
    part = folder / "tokenizer"
    write(part / "vocab.json", vocab)
    (part / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    write(part / "special_tokens_map.json", SPECIAL)
    write(
        part / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **SPECIAL},
    )
    return Tokenizer.from_folder(part)
