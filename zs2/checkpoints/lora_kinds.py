"""The kinds of LoRA: what their tensors are called, and how each changes a weight. A kind is one function and one row.

    LoRA    ΔW = up·down (Hu et al. 2021); of a convolution also up ⊗ mid ⊗ down, a Tucker decomposition (LoCon)
    LoHa    ΔW = (a₁·b₁) ⊙ (a₂·b₂), a Hadamard product (FedPara, Hyeon-Woo et al. 2022)
    LoKr    ΔW = A ⊗ B, a Kronecker product, in which A and B may be products themselves
    full    ΔW as it is, also of a norm's weight; and the same of a bias

W becomes W + scale · alpha/rank · ΔW. DoRA (Liu et al. 2024) gives any of the first three the norms of its rows or
columns, too. The formulas are those of LyCORIS and PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zs2.errors import InputError

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
Tensors = Mapping[str, Tensor]  # the tensors of one layer, by their role

# A tensor's name: the layer, then the role as kohya, PEFT, diffusers before PEFT, or LyCORIS names it.
KEY = re.compile(
    r"(.+?)(?:\.lora_(down|up|mid)\.weight|\.lora_(A|B)(?:\.default)?\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight|(?:_lora|\.lora|\.lora_linear_layer)?\.(alpha)"
    r"|\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.default)?"
    r"|\.(dora_scale|diff|diff_b|w_norm|b_norm)|\.(lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
ROLES = {"A": "down", "B": "up", "lora_magnitude_vector": "magnitude"}  # the others have their own names
NOUNS = {"down": "down matrix", "up": "up matrix"}

# What can't be merged, by name.
UNSUPPORTED = (
    (r"[._](oft_(blocks|diag|[rR])|boft_[RrSs]|rescale$)", "OFT or BOFT"),
    (r"\.on_input$|[._]ia3_l", "IA³"),
    (r"\.([ab][12]|bm)\.weight$", "GLoRA"),
    (r"\.(lambda_layer|[pq]_layer\.weight)$", "T-LoRA"),
    (r"\.lora_E(\.|$)|\.ranknum", "AdaLoRA"),
    (r"\.lora_embedding_[AB]", "a LoRA of an embedding"),
    (r"\.vera_lambda_[bd]", "VeRA"),
    (r"\.set_weight$", "a weight that replaces the model's"),
    (r"\.reshape_weight$", "a change of a weight's shape"),
    (r"\.lokr_t1$", "a LoKr whose first factor is a convolution"),
    (r"\.lora_(up|B)(\.default)?\.bias$", "a LoRA with a bias"),
    (r"\.(scalar|scale)$", "a scale other than alpha"),
)
MARK = re.compile(
    r"(^|[._])(lora|hada|lokr|b?oft|lycoris|ia3)[._]|^bundle_emb\.|\.(dora_scale|diff(_b)?|[wb]_norm|alpha)$"
    + "".join(f"|{pattern}" for pattern, _ in UNSUPPORTED[:4])
)

LARGEST_RANK = 2**14  # more than any layer of Stable Diffusion has rows; it bounds what products take


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names are a LoRA or one of its relatives, and so not a model."""
    return any(MARK.search(name) for name in names)


def role(key: str) -> tuple[str, str]:
    """A tensor's name → (the layer's name in the file, the tensor's role).

    Raises: InputError for a kind that can't be merged, or for any other name.
    """
    for pattern, kind in UNSUPPORTED:
        if re.search(pattern, key):
            known = ", ".join(one.name for one in KINDS)
            raise InputError(f"{key} is {kind}, which zs2 does not merge: expected one of {known}")
    match = KEY.fullmatch(key)
    if match is None:
        raise InputError(f"{key} is not a LoRA's: expected names such as ….lora_down.weight or ….lora_A.weight")
    name = match[match.lastindex or 0]
    return match[1], ROLES.get(name, name)


# --- the change of a weight -------------------------------------------------------------------------------------------


def low_rank(t: Tensors) -> Tensor:
    """up (out, r) · down (r, in, h, w); with mid (r, r', h, w): up (out, r), down (r', in)."""
    if "mid" in t:
        return tucker(t["mid"], t["up"].flatten(1).T, t["down"].flatten(1))
    return product(t["up"], t["down"])


def hadamard(t: Tensors) -> Tensor:
    """(a₁·b₁) ⊙ (a₂·b₂), each (out, in) or (out, in·h·w); with cores t₁, t₂: a (r, out), b (r, in)."""
    one, other = (half(t, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    if one.shape != other.shape:
        raise RuntimeError("the factors differ")
    return one * other


def kronecker(t: Tensors) -> Tensor:
    """w₁ (a, c) ⊗ w₂ (b, d, h, w) → (a·b, c·d, h, w), each as it is or as a product, and w₂ with a core t₂."""
    one, other = (
        t[f"lokr_w{i}"] if f"lokr_w{i}" in t else half(t, f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}") for i in (1, 2)
    )
    (rows, columns), (more_rows, more_columns, *kernel) = one.shape, other.shape
    both = one[:, None, :, None, None] * other.reshape(1, more_rows, 1, more_columns, -1)
    return both.reshape(rows * more_rows, columns * more_columns, *kernel)


def half(t: Tensors, a: str, b: str, core: str) -> Tensor:
    """A factor of LoHa or LoKr: a (out, r) · b (r, in), or core (r, r, h, w) with a (r, out) and b (r, in)."""
    return tucker(t[core], t[a], t[b]) if core in t else product(t[a], t[b])


def product(left: Tensor, right: Tensor) -> Tensor:
    """(out, r) · (r, in, …) → (out, in, …)."""
    return (left.flatten(1) @ right.flatten(1)).reshape(-1, *right.shape[1:])


def tucker(core: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """core (r, r', h, w), rows (r, out), columns (r', in) → (out, in, h, w)."""
    left = product(rows.T, core)  # (out, r', h, w)
    return (left.movedim(1, -1) @ columns).movedim(-1, 1)


def difference(t: Tensors) -> Tensor:
    """ΔW as it is."""
    return t["diff"] if "diff" in t else t["w_norm"]


class Kind(NamedTuple):
    """A kind of change of a weight.

    forms: the roles of its tensors, in each form that it can have.
    change: the tensors of one layer → ΔW, which fits the weight: (out, in, h, w), (out, in·h·w) or (out, in).
    ranked: the tensors whose first side is the rank. Without any of them there is no alpha/rank.
    """

    name: str
    forms: tuple[str, ...]
    change: Callable[[Tensors], Tensor]
    ranked: tuple[str, ...] = ()

    @property
    def roles(self) -> set[str]:
        return set(" ".join(self.forms).split())


W1, W2 = ("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_t2 lokr_w2_a lokr_w2_b")
HADA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"

KINDS = (
    Kind("LoRA", ("down up", "down up mid"), low_rank, ("down",)),
    Kind("LoHa", (HADA, f"{HADA} hada_t1 hada_t2"), hadamard, ("hada_w1_b", "hada_w2_b")),
    Kind("LoKr", tuple(f"{one} {other}" for one in W1 for other in W2), kronecker, ("lokr_w1_b", "lokr_w2_b")),
    Kind("full difference", ("diff",), difference),
    Kind("norm", ("w_norm",), difference),
)
BIASES = ("diff_b", "b_norm")  # differences of biases
NORMS = ("dora_scale", "magnitude")  # of DoRA: LyCORIS' and PEFT's


# --- one layer --------------------------------------------------------------------------------------------------------


class Update(NamedTuple):
    """The change of one parameter of a layer. `kind` is None for a bias."""

    layer: Layer
    path: str
    parameter: str  # weight or bias
    kind: Kind | None
    tensors: Tensors
    factor: float  # alpha/rank

    def apply(self, scale: float, file: str) -> None:
        """Replace the parameter, as computed in float32. Not in place: it may be shared, or mapped from a file.

        Raises: InputError, which names the LoRA's file, if the values are not finite in the parameter's type.
        """
        old = getattr(self.layer, self.parameter).detach()
        tensors = {name: tensor.to(old.device, torch.float32) for name, tensor in self.tensors.items()}
        new = self._merged(old.float(), tensors, scale).reshape(old.shape).to(old.dtype)
        if not new.isfinite().all():
            raise InputError(
                f"{file}: merged, the {self.parameter} of {self.path} is not finite in {old.dtype}: expected a smaller "
                "scale, or another LoRA"
            )
        setattr(self.layer, self.parameter, nn.Parameter(new, requires_grad=False))

    def _merged(self, old: Tensor, t: Tensors, scale: float) -> Tensor:
        if self.kind is None:
            return old + scale * next(t[name] for name in BIASES if name in t)
        if t.keys() == {"down", "up"}:  # a plain LoRA, in one operation
            return torch.addmm(old.flatten(1), t["up"].flatten(1), t["down"].flatten(1), alpha=scale * self.factor)
        change = self.factor * self.kind.change(t).reshape(old.shape)
        if "magnitude" in t:  # PEFT scales the change, and then gives the rows their norms
            new = old + scale * change
            return new * (t["magnitude"].reshape(_rows(new)) / _norms(new, 0))
        if "dora_scale" in t:  # LyCORIS scales the norms
            new = old + change
            axis = _axis(t["dora_scale"])
            norms = t["dora_scale"].reshape(_rows(new, axis)) / (_norms(new, axis) + torch.finfo(torch.float32).eps)
            return new * (scale * norms + (1 - scale))
        return old + scale * change


def _rows(weight: Tensor, axis: int = 0) -> list[int]:
    """The shape of what has one number for each index of an axis of the weight."""
    return [side if i == axis else 1 for i, side in enumerate(weight.shape)]


def _norms(weight: Tensor, axis: int) -> Tensor:
    rows = weight.movedim(axis, 0).flatten(1)  # in this order: over several dimensions float32 loses a digit
    return torch.linalg.vector_norm(rows, dim=1).reshape(_rows(weight, axis))


def _axis(norms: Tensor) -> int:
    """The axis for which LyCORIS' DoRA has norms: 0 (out, of late its default) or 1 (in)."""
    return 1 if norms.ndim > 1 and norms.shape[0] == 1 < norms.numel() else 0


def updates(
    layer: Layer,
    path: str,
    keys: Mapping[str, str],
    tensors: Tensors,
    factor: Callable[[int | None, float | None], float],
) -> list[Update]:
    """What the tensors of one layer change, checked: nothing is computed yet.

    Args:
        path: the layer's name, for errors. keys: role → the tensor's name. tensors: of the file, by name.
        factor: (the rank, or None if the tensors do not show it; the alpha in the file, or None) → alpha/rank.
    Raises: InputError if a tensor is missing, too much, or of another shape.
    """
    t = {role: tensors[key] for role, key in keys.items()}
    biases = [role for role in BIASES if role in t]
    kinds = [kind for kind in KINDS if t.keys() & kind.roles]
    if not kinds and (not biases or t.keys() - {*BIASES, "alpha"}):
        kinds = [KINDS[0]]
    for several in (biases, [next(role for role in t if role in kind.roles) for kind in kinds if len(kinds) > 1]):
        if len(several) > 1:
            raise InputError(f"{keys[several[0]]} and {keys[several[1]]} are for the same layer: expected one of them")
    found = []
    for role in biases:
        bias = getattr(layer, "bias", None)
        if bias is None or t[role].shape != bias.shape:
            has = "has no bias" if bias is None else f"has a bias {tuple(bias.shape)}"
            raise InputError(f"{_shown([role], keys, t)} does not fit {path}, which {has}")
        found.append(Update(layer, path, "bias", None, {role: t[role]}, 1.0))
    for kind in kinds:
        rank = _check(kind, layer.weight, path, keys, t)
        if "alpha" in t and t["alpha"].numel() != 1:
            raise InputError(f"{keys['alpha']} has shape {tuple(t['alpha'].shape)}: expected one number")
        scaled = factor(rank, t["alpha"].item() if "alpha" in t else None) if kind.ranked else 1.0
        used = {role: tensor for role, tensor in t.items() if role in kind.roles or role in NORMS}
        found.append(Update(layer, path, "weight", kind, used, scaled))
    return found


def _check(kind: Kind, weight: Tensor, path: str, keys: Mapping[str, str], t: Tensors) -> int | None:
    """The rank, if the tensors show it. Raises: InputError if they are not whole, or do not fit the weight."""
    have = [role for role in t if role in kind.roles]
    forms = sorted((set(form.split()) for form in kind.forms if set(have) <= set(form.split())), key=len)
    if not forms:
        raise InputError(f"{_shown(have, keys, t)} are for the same layer: expected one of {'; '.join(kind.forms)}")
    missing = sorted(forms[0] - set(have))
    if missing:
        first = keys[have[0]] if have else next(iter(keys.values()))
        raise InputError(f"{first} has no {NOUNS.get(missing[0], missing[0])} with it: is the file whole?")
    ranks = {t[role].shape[:1] for role in kind.ranked if role in t}
    rank = next(iter(ranks), None)
    if rank and rank[0] > LARGEST_RANK:
        raise InputError(f"{_shown(have, keys, t)}: the rank is {rank[0]}, expected at most {LARGEST_RANK}")
    try:  # without values: only shapes
        change = tuple(kind.change({role: t[role].to("meta", torch.float32) for role in have}).shape)
        fits = len(ranks) < 2 and rank not in ((), (0,)) and _fits(change, tuple(weight.shape))
    except (RuntimeError, ValueError, IndexError):
        fits = False
    if not fits:
        verb = "does" if len(have) == 1 else "do"
        raise InputError(f"{_shown(have, keys, t)} {verb} not fit {path}, whose weight is {tuple(weight.shape)}")
    for role in (role for role in NORMS if role in t):
        axis = _axis(t[role]) if role == "dora_scale" else 0
        sides = t[role].numel(), max(t[role].shape, default=0)
        if not kind.ranked or len(t.keys() & set(NORMS)) > 1 or set(sides) != {weight.shape[axis]}:
            raise InputError(
                f"{_shown([role], keys, t)} does not fit the {kind.name} of {path}, whose weight is "
                f"{tuple(weight.shape)}: DoRA has one number a row"
            )
    return rank[0] if rank else None


def _fits(change: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a change fits a weight. A 1×1 convolution stands for a linear layer, and a matrix for a convolution."""
    plain, target = (shape[:2] if shape[2:] == (1, 1) else shape for shape in (change, weight))
    return plain == target or (len(target) == 4 and plain == (target[0], target[1] * target[2] * target[3]))


def _shown(roles: Iterable[str], keys: Mapping[str, str], t: Tensors) -> str:
    return ", ".join(f"{keys[role]} {tuple(t[role].shape)}" for role in roles)
