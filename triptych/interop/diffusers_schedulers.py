"""diffusers' schedulers in and out of `processes/ddpm.py`: a scheduler_config.json is what the network says, and how to draw with it.

    process, how = scheduler_from_diffusers(read, path, latent=True)   # DDPM.Config, {"sampler", "spacing", "threshold"}
    name, values = scheduler_to_diffusers(config, sampling)

What our sampler has no counterpart for is a ValueError that names file, setting and the way out. PNDM's own steps are not offered:
a folder that asks for them is drawn by DDIM, on the same timesteps and to the same last one.

Two habits stay behind. DDIM on linspace, and on trailing steps whose number does not divide T, leads in diffusers to other places than
where it looks next; here it does not. And where DDIM clips x0, diffusers keeps the noise that it believed in before clipping, unless
`use_clipped_model_output` is set; here, as in OpenAI's code, the noise is what leads from the clipped x0 to x_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from triptych.catalog import nearest
from triptych.processes.ddpm import Config, Sampling

__all__ = ["NO_PNDM", "scheduler_from_diffusers", "scheduler_to_diffusers"]

NO_PNDM = "PNDM's own steps are not offered: drawn by ddim on the same timesteps, unless another sampler is asked for"

_WAY_OUT = "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config); pipe.save_pretrained(FOLDER) writes one that can be read"
_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
_LARGEST_S = 100.0  # from there on a clamp of dynamic thresholding's s is none


class _Kind(NamedTuple):
    """One class of theirs: our sampler, what it listens to (with its defaults), and what else must be as it is here."""

    sampler: str
    heard: dict[str, Any]
    needed: dict[str, Any]


_SHARED: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
    "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip
_ZERO = {"rescale_betas_zero_snr": False}
_CLIPS: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
_DYNAMIC: dict[str, Any] = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SIGMAS: dict[str, Any] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW: dict[str, Any] = {"use_flow_sigmas": False, "use_dynamic_shifting": False, "final_sigmas_type": "zero"}
_BETTER: dict[str, Any] = {"trained_betas": None}

_KINDS = {
    "DDIMScheduler": _Kind(
        "ddim", _SHARED | _ZERO | _CLIPS | _DYNAMIC | {"timestep_spacing": "leading", "set_alpha_to_one": True}, _BETTER
    ),
    "DDPMScheduler": _Kind(
        "ddpm", _SHARED | _ZERO | _CLIPS | _DYNAMIC | {"timestep_spacing": "leading", "variance_type": "fixed_small"}, _BETTER
    ),
    "PNDMScheduler": _Kind("ddim", _SHARED | {"timestep_spacing": "leading", "set_alpha_to_one": False}, _BETTER),
    "EulerDiscreteScheduler": _Kind(
        "euler", _SHARED | _ZERO,
        _BETTER | _SIGMAS | {
            "interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete", "final_sigmas_type": "zero",
        },
    ),
    "EulerAncestralDiscreteScheduler": _Kind("euler_a", _SHARED | _ZERO, _BETTER),
    "HeunDiscreteScheduler": _Kind(
        "heun", _SHARED | {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "clip_sample_range": 1.0}, _BETTER | _SIGMAS
    ),
    "DPMSolverMultistepScheduler": _Kind(
        "dpmpp_2m", _SHARED | _ZERO | _DYNAMIC | {"algorithm_type": "dpmsolver++"},
        _BETTER | _SIGMAS | _FLOW | {
            "solver_order": 2, "solver_type": "midpoint", "euler_at_final": False, "use_lu_lambdas": False,
            "lambda_min_clipped": -float("inf"),
        },
    ),
    "UniPCMultistepScheduler": _Kind(
        "unipc", _SHARED | _ZERO | _DYNAMIC,
        _BETTER | _SIGMAS | _FLOW | {
            "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True, "disable_corrector": [],
            "solver_p": None, "shift_terminal": None, "sigma_min": None, "sigma_max": None,
        },
    ),
}  # fmt: skip
_UNHEARD = {  # of no consequence where everything else is as it must be
    "skip_prk_steps", "variance_type", "flow_shift", "time_shift_type", "lower_order_final", "set_alpha_to_one", "use_timestep_scaling",
    "num_inference_steps", "timestep_values",
}  # fmt: skip
_KNOWN = _UNHEARD.union(*(kind.heard.keys() | kind.needed.keys() for kind in _KINDS.values()))
_ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}


def scheduler_from_diffusers(theirs: Mapping[str, Any], path: Path, *, latent: bool) -> tuple[Config, dict[str, Any]]:
    """The process, and the settings of its Sampling that a folder means. latent: the model draws latents, which have no range.

    Raises ValueError that names `path`, the setting and the way out.
    """
    name = theirs.get("_class_name")
    if name not in _KINDS:
        raise ValueError(f"{path}: a {name} cannot be read; {nearest(str(name), list(_KINDS))}; {_WAY_OUT}")
    kind = _KINDS[name]
    for setting, value in theirs.items():
        if setting in kind.needed and not _same(value, kind.needed[setting]):
            raise _unread(path, setting, value, repr(kind.needed[setting]))
        if setting not in _KNOWN and not setting.startswith("_") and value not in (None, False, 0, "", [], {}):
            raise _unread(path, setting, value, "none")
    said = kind.heard | {setting: value for setting, value in theirs.items() if setting in kind.heard}
    sampler = kind.sampler
    if "algorithm_type" in said:
        sampler = _one(path, said, "algorithm_type", _ALGORITHMS)
    set_alpha_to_one = theirs.get("set_alpha_to_one", kind.heard.get("set_alpha_to_one", True))  # for whoever asks for ddim
    values = {
        "num_timesteps": said["num_train_timesteps"], "beta_schedule": _one(path, said, "beta_schedule", _BETAS),
        "beta_start": said["beta_start"], "beta_end": said["beta_end"], "zero_terminal_snr": bool(said.get("rescale_betas_zero_snr")),
        "target": _one(path, said, "prediction_type", _TARGETS),
        "variance": _one(path, {"variance_type": said.get("variance_type", "fixed_small")}, "variance_type", _VARIANCES),
        "offset": said["steps_offset"], "last": "one" if set_alpha_to_one else "first",
    }  # fmt: skip
    how = {"sampler": sampler, "spacing": said["timestep_spacing"], "threshold": _threshold(path, said, latent)}
    try:
        config = Config(**values)
        Sampling(**how)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config, how


def _threshold(path: Path, said: Mapping[str, Any], latent: bool) -> str:
    """none, static or dynamic. Theirs holds s, the percentile, to at most sample_max_value."""
    if not said.get("thresholding") and not said.get("clip_sample"):
        return "none"
    setting = "thresholding" if said.get("thresholding") else "clip_sample"
    if latent:
        raise ValueError(f"{path}: {setting} = True: latents have no range of pixels to be kept in; set it to false in that file")
    if setting == "clip_sample":
        if said["clip_sample_range"] != 1:
            raise _unread(path, "clip_sample_range", said["clip_sample_range"], "1.0")
        return "static"
    largest = said["sample_max_value"]
    if largest == 1:
        return "static"
    if largest < _LARGEST_S:
        raise _unread(path, "sample_max_value", largest, f"1.0, or {_LARGEST_S:g} and more,")
    if said["dynamic_thresholding_ratio"] != 0.995:
        raise _unread(path, "dynamic_thresholding_ratio", said["dynamic_thresholding_ratio"], "0.995")
    return "dynamic"


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted or not (value or wanted)


def _one(path: Path, said: Mapping[str, Any], setting: str, known: Mapping[str, str]) -> str:
    value = said[setting]
    if not isinstance(value, str) or value not in known:
        raise _unread(path, setting, value, " or ".join(map(repr, known)))
    return known[value]


def _unread(path: Path, setting: str, value: Any, known: str) -> ValueError:
    return ValueError(f"{path}: {setting} = {value!r} cannot be read, only {known} can; {_WAY_OUT}")


# --- out ----------------------------------------------------------------------------------------------------------------


def scheduler_to_diffusers(config: Config, how: Sampling, *, words: bool) -> tuple[str, dict[str, Any]]:
    """(their class's name, its settings), with which `how` draws the same there. words: for StableDiffusionPipeline.

    Raises ValueError for what no scheduler of theirs can be told.
    """
    c = config
    cannot = {
        f"target = {c.target}": c.target not in _TARGETS.values(), f"interval = {how.interval}": how.interval != (0.0, 1.0),
        "offset = 0 with spacing = leading: its pipeline of words starts at 1": words and how.spacing == "leading" and c.offset == 0,
        "sampler = ddim with spacing = linspace: its timesteps lead elsewhere": (how.sampler, how.spacing) == ("ddim", "linspace"),
        f"threshold = {how.threshold} with sampler = {how.sampler}": how.threshold != "none" and (words or how.sampler != "ddpm"),
        "sampler = heun at zero terminal SNR": how.sampler == "heun" and c.zero_terminal_snr,
    }  # fmt: skip
    for what, asked in cannot.items():
        if asked:
            raise ValueError(f"the process: {what}: diffusers has no counterpart; set another with sampling or --set, and export again")
    name = next(name for name, kind in _KINDS.items() if name != "PNDMScheduler" and kind.sampler == how.sampler.removesuffix("_sde"))
    kind, scale = _KINDS[name], 1000 / c.num_timesteps if c.rescale and c.beta_schedule != "cosine" else 1.0
    said = {
        "num_train_timesteps": c.num_timesteps, "beta_start": c.beta_start * scale, "beta_end": c.beta_end * scale,
        "beta_schedule": _back(_BETAS, c.beta_schedule), "prediction_type": _back(_TARGETS, c.target), "timestep_spacing": how.spacing,
        "steps_offset": 1 if words else c.offset, "rescale_betas_zero_snr": c.zero_terminal_snr, "clip_sample": how.threshold == "static",
        "thresholding": how.threshold == "dynamic", "sample_max_value": _LARGEST_S, "set_alpha_to_one": c.last == "one",
        "variance_type": c.variance, "algorithm_type": _back(_ALGORITHMS, how.sampler) if how.sampler in _ALGORITHMS.values() else None,
    }  # fmt: skip
    plain = {key: value for key, value in kind.needed.items() if key != "lambda_min_clipped"}  # no JSON number
    return name, plain | kind.heard | {key: value for key, value in said.items() if key in kind.heard}


def _back(table: Mapping[str, str], value: str) -> str:
    return next(theirs for theirs, ours in table.items() if ours == value)
