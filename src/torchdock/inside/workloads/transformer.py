"""A small Transformer that writes text, letter by letter, trained on sentences of a small grammar.

    the old fox sees a red door. later the fox sleeps.

Each word is drawn evenly from a list, but for the animal's second mention: it has to be looked up at the sentence's
start, which is what attention is for. The grammar's entropy is known, so it is known how good a model can be.
"""

from __future__ import annotations

import math
import random

import torch
from torch import nn
from torch.utils.data import TensorDataset

from torchdock.inside.workloads.loop import Batch, Workload

ADJECTIVES = ("old", "red", "tiny", "loud", "calm", "wet", "proud", "blind")
ANIMALS = ("fox", "owl", "bear", "toad", "crow", "hare", "mole", "newt")
VERBS = ("sees", "finds", "likes", "paints")
THINGS = ("door", "lamp", "stone", "tree")
ENDS = ("sleeps", "sings", "leaves", "waits")
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz."
CONTEXT = 64  # letters that the model sees; every sentence is shorter


def sentence(draw: random.Random) -> tuple[str, int]:
    """Return one sentence, and where in it the animal's second mention begins."""
    animal = draw.choice(ANIMALS)
    start = f"the {draw.choice(ADJECTIVES)} {animal} {draw.choice(VERBS)} a {draw.choice(ADJECTIVES)} "
    start += f"{draw.choice(THINGS)}. later the "
    return f"{start}{animal} {draw.choice(ENDS)}.", len(start)


def entropy() -> float:
    """Return the nats that a sentence holds: no model can need fewer."""
    return sum(math.log(len(words)) for words in (ANIMALS, ADJECTIVES, VERBS, ADJECTIVES, THINGS, ENDS))


def sentences(count: int, seed: int) -> TensorDataset:
    """Return so many sentences, each as (letters, next letters, where the second mention is), all (CONTEXT,).

    Letters are int64 indices of ALPHABET; what follows a sentence's end is -100, which the loss leaves out.
    """
    draw = random.Random(seed)
    letters = torch.zeros(count, CONTEXT, dtype=torch.int64)
    following = torch.full((count, CONTEXT), -100)
    mentioned = torch.zeros(count, CONTEXT, dtype=torch.bool)
    for row in range(count):
        text, second = sentence(draw)
        codes = torch.tensor([0, *map(ALPHABET.index, text)])
        letters[row, : len(text)], following[row, : len(text)] = codes[:-1], codes[1:]
        mentioned[row, second : text.index(" ", second)] = True
    return TensorDataset(letters, following, mentioned)


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return (training, held-out): 1,536 and 256 sentences, the same on every machine."""
    return sentences(1536, seed=1), sentences(256, seed=2)


class Transformer(nn.Module):
    """Letters (N, T) to scores of the next one (N, T, len(ALPHABET)); none sees what comes after it."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.scores = nn.Linear(width, len(ALPHABET))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        length = letters.shape[1]
        ahead = nn.Transformer.generate_square_subsequent_mask(length, device=letters.device)
        places = self.places(torch.arange(length, device=letters.device))
        return self.scores(self.layers(self.letters(letters) + places, mask=ahead, is_causal=True))


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy (nats a sentence)."""
    letters, following, _ = batch
    scores = model(letters).float().transpose(1, 2)
    return nn.functional.cross_entropy(scores, following, ignore_index=-100, reduction="sum") / len(letters)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return bool (N,): whether every letter of the animal's second mention is the most likely one."""
    letters, following, mentioned = batch
    right = model(letters).argmax(dim=2) == following
    return (right | ~mentioned).all(dim=1)


WORKLOAD = Workload(
    name="transformer",
    words=f"a Transformer on generated sentences of {entropy():.2f} nats",
    model=Transformer,
    data=data,
    loss=loss,
    score=score,
    scored="animals that it remembered",
    optimizer=lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate),
    rate=5e-3,
    batch=16,
    epochs=3,
    at_most=1.25 * entropy(),
    at_least=0.9,
    clip=1.0,
)
