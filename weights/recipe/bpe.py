"""The tokenizer: CLIP's byte-pair scheme (bytes as letters, `</w>` ends a word), with merges learnt from captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from weights.recipe.layout import write
from weights.recipe.scenes import COLOURS, LOOKS, SETTINGS
from weights.recipe.settings import TOKENS
from zs2.models.tokenizer import SPECIAL, Tokenizer, byte_letters


def learn(names: Sequence[str], folder: Path) -> Tokenizer:
    """The tokenizer in `tokenizer/`. If there is none yet, it is learnt from the words of the captions."""
    part = folder / "tokenizer"
    if (part / "tokenizer_config.json").exists():
        return Tokenizer.from_folder(part)
    letters = byte_letters()
    base = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    specials = [SPECIAL["bos_token"], SPECIAL["eos_token"]]
    # zs2's own splitting of a prompt into words: merges are learnt within the words that they will be applied to
    plain = Tokenizer(base | {token: len(base) + i for i, token in enumerate(specials)}, [], {}, TOKENS).backend
    texts = [*names, *50 * [*(f"a {colour} background on" for colour in COLOURS), *SETTINGS, *LOOKS]]
    split = (plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text)) for text in texts)
    vocab, merges = merged(Counter(word for words in split for word, _ in words), base)
    write(part / "vocab.json", vocab | {token: len(vocab) + i for i, token in enumerate(specials)})
    (part / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    write(part / "special_tokens_map.json", SPECIAL)
    write(
        part / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **SPECIAL},
    )
    return Tokenizer.from_folder(part)


def merged(words: Mapping[str, int], base: Mapping[str, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Join the most frequent pair of neighbours, again and again, until each word is whole.

    Of equally frequent pairs, the one with the lowest numbers comes first. So the order is fixed, unlike that of the
    trainer in `tokenizers`.
    words: the count of each word. base: the numbers of the letters.
    Returns: base with the joined tokens, and the merges.
    """
    numbers = dict(base)
    tokens = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while pairs := _count(words, tokens):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], numbers[pair[0]], numbers[pair[1]])))
        numbers.setdefault("".join(merges[-1]), len(numbers))
        for word in tokens.values():
            i = 0
            while i < len(word) - 1:
                if tuple(word[i : i + 2]) == merges[-1]:
                    word[i : i + 2] = ["".join(merges[-1])]
                i += 1
    return numbers, merges


def _count(words: Mapping[str, int], tokens: Mapping[str, Sequence[str]]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(tokens[word]):
            pairs[pair] += count
    return pairs
