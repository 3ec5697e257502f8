"""A training run: steps, learning rate, averaged weights, log, and the state to resume from.

Files of its folder:

state.pt       networks, averaged weights, optimizer, step count and seconds; written atomically
log.csv        one line every `log_every` steps
curve.png      plots of the log
settings.json  the stage's settings; resuming with other settings is an error
"""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from mmsr_edge.errors import OptionError, missing_extra
from mmsr_edge.files import replacing
from mmsr_edge.training.throughput import Throughput


@dataclass(frozen=True)
class RunConfig:
    """Settings that all stages share."""

    steps: int
    """Length of the learning-rate schedule; training ends there."""
    minutes: float | None = None
    """Wall-clock limit of this session; None: no limit. A stopped run can be resumed."""
    by_time: bool = False
    """Whether the learning-rate schedule lasts `minutes` in place of `steps`, for machines that are
    rented by time."""
    learning_rate: float = 2e-4
    """Peak learning rate, after `warmup` steps; it falls along half a cosine to a fiftieth."""
    warmup: int = 200
    """Steps of linear warm-up of the learning rate."""
    ema: float = 0.999
    """Decay of the weights' moving average, approached from below."""
    epsilon: float = 1e-8
    """Adam's ε. Where gradients are small next to it, its steps are too: much of those of the
    cross-attention are below 1e-8."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down to it."""
    log_every: int = 25
    """Steps between log lines."""
    save_every: float = 4.0
    """Minutes between saves of `state.pt`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    compile: bool = False
    """Whether to `torch.compile` the networks; it takes minutes at the start."""
    seed: int = 0
    """Seed of all random draws."""


NOT_DRAWN = ("step", "hours", "rate", "norm", "samples_per_s", "tflops", "share_of_peak")
"""Columns of the log that `curve.png` does not plot."""


class Run:
    """Counts steps, schedules the learning rate, averages weights, logs, saves and resumes.

    Args:
        folder: folder of the run; created, or resumed from.
        config: the settings that all stages share.
        stage: the stage's own settings, a dataclass; recorded, and compared on resuming.
        trained: the networks that are trained, by name, on the device.
        rates: factors on the learning rate, by a part of the parameters' names, such as ".attn2.";
            the first that fits counts, and others have 1.

    Raises:
        OptionError: `folder` holds a run with other settings, or `by_time` is set without
            `minutes`.
        MissingExtraError: matplotlib is not installed.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        stage: Any,
        trained: dict[str, nn.Module],
        rates: Mapping[str, float] | None = None,
    ) -> None:
        if find_spec("matplotlib") is None:  # fail now, not at the first save
            raise missing_extra("matplotlib", "train")
        if config.by_time and not config.minutes:
            raise OptionError("by_time without minutes; give minutes, the length of the schedule")
        self.folder, self.config, self.trained = folder, config, trained
        for module in trained.values() if config.compile else ():
            module.compile()  # in place, which keeps the names in the state dict
        self.step, self.seconds = 0, 0.0
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(asdict(stage))
        self.parameters = [p for m in trained.values() for p in m.parameters() if p.requires_grad]
        on_gpu = self.parameters[0].device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            _groups(trained, rates or {}),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            eps=config.epsilon,
            weight_decay=1e-4,
            fused=on_gpu,
        )
        self.ema = EMAModel(
            self.parameters, decay=config.ema, use_ema_warmup=True, power=0.75, foreach=on_gpu
        )
        self.throughput = Throughput(getattr(stage, "batch", 1), self.parameters[0].device)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._stopped = False
        self._resume()

    def _check_settings(self, stage: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        text = json.dumps(stage, indent=1, sort_keys=True, default=str)
        if path.exists() and path.read_text() != text:
            raise OptionError(
                f"{str(self.folder)!r} holds a run with other settings; give another folder, or "
                f"the settings of {path.name}: {path.read_text()}"
            )
        path.write_text(text)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.trained.items():
            module.load_state_dict(state["networks"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.parameters[0].device)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write `state.pt` and `curve.png`."""
        state = {
            "networks": {n: m.state_dict() for n, m in self.trained.items()},
            "parameters": {
                n: [k for k, p in m.named_parameters() if p.requires_grad]
                for n, m in self.trained.items()
            },
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "seconds": self.elapsed(),
        }
        with replacing(self.folder / "state.pt") as file:
            torch.save(state, file)
        draw_curve(self.folder / "log.csv", self.folder / "curve.png")

    def elapsed(self) -> float:
        """Seconds trained, including earlier sessions."""
        return self.seconds + time.monotonic() - self.started

    def done(self) -> float:
        """Share of the schedule that is done, of its steps or, with `by_time`, of its time."""
        if self.config.by_time:
            return self.elapsed() / (60 * (self.config.minutes or 1))
        return self.step / self.config.steps

    def learning_rate(self) -> float:
        """Learning rate of this step: linear warm-up, then half a cosine down to a fiftieth."""
        peak, done = self.config.learning_rate, self.done()
        warm = min(1.0, (self.step + 1) / self.config.warmup)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(min(done, 1.0) * torch.pi)).item())
        return peak * warm * (0.02 + 0.98 * cosine)

    def __iter__(self) -> Iterator[int]:
        """Yield step numbers until the last step, the time limit or a signal; then save."""
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self._stop)
        limit = (self.config.minutes or float("inf")) * 60
        saved = time.monotonic()
        bar = tqdm(
            total=self.config.steps, initial=self.step, desc=self.folder.name, mininterval=10
        )
        try:
            while not self._stopped and self.step < self.config.steps:
                if time.monotonic() - self.started > limit:
                    break
                # The body of the caller's loop runs inside the `yield`.
                with self.throughput.counting() if self.throughput.flops is None else nullcontext():
                    yield self.step
                self.step += 1
                bar.update()
                if time.monotonic() - saved > self.config.save_every * 60:
                    self.save()
                    saved = time.monotonic()
        finally:
            bar.close()
            self.save()

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    def update(self, loss: Tensor, **logged: Tensor | float) -> None:
        """Make one optimizer step on `loss`; the means of `logged` go to the log."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if torch.isfinite(norm):  # otherwise the batch is skipped
            self.optimizer.step()
        self.ema.step(self.parameters)
        for name, value in {"loss": loss, "norm": norm, **logged}.items():
            value = torch.as_tensor(value).detach()  # stays on the device: no synchronization
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        if self._count == self.config.log_every:
            self._log(rate)

    def _log(self, rate: float) -> None:
        row = {
            "step": self.step + 1,
            "hours": round(self.elapsed() / 3600, 4),
            "rate": f"{rate:.2e}",
        }
        row |= {k: round(float(v) / self._count, 5) for k, v in self._sums.items()}
        row |= self.throughput.measure(self._count)
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._sums, self._count = {}, 0


def _groups(trained: dict[str, nn.Module], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer, each with its factor on the learning rate.

    Without `rates` there is one, in the order of `Run.parameters`.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for network, module in trained.items():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                name = f"{network}.{key}"
                factor = next((f for part, f in rates.items() if part in name), 1.0)
                groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "factor": factor} for factor, params in groups.items()]


def draw_curve(log: Path, picture: Path) -> None:
    """Plot the columns of `log` over the steps, except `NOT_DRAWN`."""
    if not log.exists():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with log.open() as file:
        rows = list(csv.DictReader(file))
    names = [n for n in rows[0] if n not in NOT_DRAWN]
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([int(r["step"]) for r in rows], [float(r[name]) for r in rows], linewidth=0.8)
        axis.set(title=name, xlabel="step")
        if all(float(r[name]) > 0 for r in rows):
            axis.set_yscale("log")
    figure.tight_layout()
    with replacing(picture) as out:
        figure.savefig(out, format="png", dpi=80)
    plt.close(figure)
