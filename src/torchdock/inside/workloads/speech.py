"""Speech recognition in small: synthesised utterances, log-mel features, a recurrent network, CTC.

A word is a gliding pair of tones, as vowels are gliding formants; an utterance is three to five of ten words, of any
speed, with pauses, under noise. Nobody tells the network where a word begins: CTC finds that out.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.data import TensorDataset

from torchdock.inside.workloads.loop import Batch, Workload

RATE = 8000  # samples a second
WINDOW, HOP, MELS = 256, 128, 32
WORDS = 10
LONGEST = 5  # words
SAMPLES = RATE  # of an utterance, silence at its end included
# Where the two tones of each word begin and end, in Hz.
TONES = tuple(
    ((300 + 90 * (word % 5), 300 + 90 * ((word * 3 + 2) % 5)), (1200 + 220 * (word // 2), 1200 + 220 * (4 - word // 2)))
    for word in range(WORDS)
)


def utterances(count: int, seed: int) -> TensorDataset:
    """Return so many utterances: sound float32 (SAMPLES,), words int64 (LONGEST,) 1..10 and then 0, how many words."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    sound = 0.05 * torch.randn(count, SAMPLES, generator=generator)
    words, lengths = torch.zeros(count, LONGEST, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    for row in range(count):
        lengths[row] = draw(3, LONGEST + 1)
        at = draw(0, RATE // 20)
        for place in range(int(lengths[row])):
            word, length = draw(0, WORDS), draw(RATE // 12, RATE // 7)
            share = torch.arange(length) / length
            wave = torch.zeros(length)
            for begin, end in TONES[word]:
                # The phase is the integral of the gliding frequency.
                wave += torch.sin(2 * math.pi * length / RATE * (begin * share + (end - begin) * share**2 / 2))
            sound[row, at : at + length] += wave * torch.sin(math.pi * share)
            words[row, place] = word + 1
            at += length + draw(RATE // 50, RATE // 20)
    return TensorDataset(sound, words, lengths)


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return (training, held-out): 512 and 64 utterances of a second, the same on every machine."""
    return utterances(512, seed=1), utterances(64, seed=2)


def mel_filters() -> torch.Tensor:
    """Return (WINDOW // 2 + 1, MELS): triangles over the frequencies, evenly spaced on the mel scale."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    centres = 700 * (10 ** (torch.linspace(0, mel(RATE / 2), MELS + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = (frequencies - centres[:-2]) / (centres[1:-1] - centres[:-2])
    falling = (centres[2:] - frequencies) / (centres[2:] - centres[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class Listener(nn.Module):
    """Sound (N, samples) to log-probabilities (T, N, 1 + WORDS), one frame every 32 ms; 0 is CTC's blank."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW))
        self.register_buffer("filters", mel_filters())
        self.frames = nn.Conv1d(MELS, width, kernel_size=3, stride=2, padding=1)
        self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.words = nn.Linear(2 * width, 1 + WORDS)

    def features(self, sound: torch.Tensor) -> torch.Tensor:
        """Return the log-mel spectrogram (N, MELS, frames), about zero."""
        with torch.autocast(sound.device.type, enabled=False):  # a Fourier transform needs its 32 bits
            spectrum = torch.stft(sound, WINDOW, HOP, window=self.window, return_complex=True)
            power = spectrum.abs().square().transpose(1, 2) @ self.filters
            return (power + 1e-3).log().transpose(1, 2) / 4

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities."""
        frames = torch.relu(self.frames(self.features(sound)))
        return self.words(self.reader(frames.transpose(1, 2))[0]).float().log_softmax(dim=2).transpose(0, 1)


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean CTC loss (nats a word)."""
    sound, words, lengths = batch
    probabilities = model(sound)
    frames = torch.full((len(sound),), len(probabilities), device=sound.device)
    return nn.functional.ctc_loss(probabilities, words, frames, lengths)


def score(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return float (N,): 1 for an utterance that was understood to the last word, else 0.

    The likeliest of each frame; repeated ones are one, then blanks go.
    """
    sound, words, lengths = batch
    best = model(sound).argmax(dim=2).transpose(0, 1).cpu()
    heard = [frames[frames != 0].tolist() for frames in map(torch.unique_consecutive, best)]
    said = [row[:length].tolist() for row, length in zip(words.cpu(), lengths.cpu(), strict=True)]
    return torch.tensor([float(one == other) for one, other in zip(heard, said, strict=True)])


WORKLOAD = Workload(
    name="speech",
    words="log-mel, GRU and CTC on synthesised utterances",
    model=Listener,
    data=data,
    loss=loss,
    score=score,
    scored="utterances understood to the last word",
    optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    rate=5e-3,
    batch=16,
    epochs=6,
    at_most=0.3,
    at_least=0.8,
    clip=5.0,
)
