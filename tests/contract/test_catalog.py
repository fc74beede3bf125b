"""What every family of the catalog promises, whatever it is made of. A new file is covered without a test of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract import tiny
from triptych import catalog
from triptych.contracts import Condition, ConditionSpec, Decoder, Prompt, Rng, Task, TextEncoder
from triptych.eyes import Eyes

SEQUENCES = ("ids_BL", "tokens_BLD", "mask_BL", "prepared_BLX")
TRAININGS = tiny.trainings()


def close(a: Tensor, b: Tensor, bound: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=bound, rtol=bound)


def listening(name: str) -> tuple[nn.Module, TextEncoder]:
    """A family of vision beside a text encoder."""
    text_encoder = tiny.build("text_encoders", tiny.names("text_encoders")[0]).eval()
    return tiny.awake(tiny.build("vision", name, condition=text_encoder.gives)).eval(), text_encoder


# --- built --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), tiny.families(*tiny.PANELS))
def test_every_size_is_built_without_memory(kind: str, name: str) -> None:
    """On the meta device, the published sizes too; `config` is kept, and the neighbours' shapes are asked of the neighbours."""
    for size, config in catalog.find(kind, name).SIZES.items():
        with torch.device("meta"):
            neighbours: dict[str, Any] = {}
            if kind in ("generators", "vision"):
                neighbours["condition"] = ConditionSpec(vocab=512, width=32, context_length=48, pooled=32, num_labels=10)
            if kind == "generators":
                neighbours["latent"] = catalog.build("decoders", tiny.joined(generator=name).decoder, size="tiny").latent
            panel = catalog.build(kind, name, config, **neighbours)
        assert panel.config is config, size
        assert all(tensor.is_meta for tensor in [*panel.parameters(), *panel.buffers()]), size
        assert len({id(p) for p in panel.parameters()}) == len(list(panel.named_parameters(remove_duplicate=False))), size


@pytest.mark.parametrize(("kind", "name"), tiny.families(*tiny.PANELS, "processes"))
def test_building_draws_from_the_seed_alone(kind: str, name: str) -> None:
    neighbours: dict[str, Any] = {}
    if kind in ("generators", "vision"):
        neighbours["condition"] = tiny.build("text_encoders", tiny.names("text_encoders")[0]).gives
    if kind == "generators":
        neighbours["latent"] = tiny.build("decoders", tiny.joined(generator=name).decoder).latent
    one, same = (tiny.build(kind, name, **neighbours) for _ in range(2))
    assert one.config == same.config == catalog.find(kind, name).SIZES["tiny"]
    if isinstance(one, nn.Module):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))


# --- panel 1 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.names("text_encoders"))
def test_a_text_encoder_says_what_it_gives(name: str) -> None:
    panel = tiny.build("text_encoders", name).eval()
    assert isinstance(panel, TextEncoder)
    gives, rows = panel.gives, len(tiny.PROMPTS)
    with torch.no_grad():
        cond, null = panel.encode(tiny.PROMPTS), panel.null(tiny.PROMPTS)
    assert cond.ports().keys() == null.ports().keys()
    promised = {
        "ids_BL": gives.vocab, "tokens_BLD": gives.width, "pooled_BD": gives.pooled, "label_B": gives.num_labels,
        "vector_BK": gives.vector, "concat_BCHW": gives.concat, "hint_BCHW": gives.hint,
    }  # fmt: skip
    for said in (cond, null):
        ports = said.ports()
        assert {port for port in ports if port in promised} == {port for port, size in promised.items() if size}
        assert all(len(port) == rows for port in ports.values())
        assert all(port.isfinite().all() for port in ports.values())
        assert all(ports[port].shape[1] <= gives.context_length for port in SEQUENCES if port in ports)
        for port, size in (("tokens_BLD", gives.width), ("pooled_BD", gives.pooled), ("vector_BK", gives.vector)):
            assert port not in ports or ports[port].shape[-1] == size
        if gives.vocab:
            assert said.ids_BL.dtype == torch.int64 and said.ids_BL.min() >= 0 and said.ids_BL.max() < gives.vocab
        if said.mask_BL is not None:
            assert said.mask_BL.dtype == torch.bool and said.mask_BL.any(dim=1).all()
        if gives.num_labels:
            assert said.label_B.dtype == torch.int64 and said.label_B.max() <= gives.num_labels
    assert not any(torch.equal(a, b) for a, b in zip(rows_of(cond)[0], rows_of(cond)[1], strict=True) if a.is_floating_point())


def rows_of(cond: Condition) -> list[list[Tensor]]:
    """Each row's ports without padding."""
    rows = []
    for i in range(len(next(iter(cond.ports().values())))):
        real = slice(None) if cond.mask_BL is None else cond.mask_BL[i]
        rows.append([port[i][real] if name in SEQUENCES else port[i] for name, port in cond.ports().items()])
    return rows


@pytest.mark.parametrize("name", tiny.names("text_encoders"))
def test_words_do_not_depend_on_those_beside_them(name: str) -> None:
    panel = tiny.awake(tiny.build("text_encoders", name)).eval()
    with torch.no_grad():
        together, turned = rows_of(panel.encode(tiny.PROMPTS)), rows_of(panel.encode(tiny.PROMPTS[::-1]))[::-1]
        alone = [rows_of(panel.encode([prompt]))[0] for prompt in tiny.PROMPTS]
    for a, b, c in zip(together, turned, alone, strict=True):
        for one, two, three in zip(a, b, c, strict=True):
            close(one, two)
            close(one, three)


# --- panel 2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.names("generators"))
def test_a_network_answers_in_the_shape_of_its_role(name: str) -> None:
    model = tiny.model(generator=name)
    network, space = model.generator.network, model.decoder.latent
    cond = model.text_encoder.encode(tiny.PROMPTS)
    rows = len(tiny.PROMPTS)
    if network.role == "denoiser":
        x = Rng.of_seeds(range(rows)).normal("x", space.shape)
        with torch.no_grad():
            out = network(x, torch.linspace(0, 1000, rows), cond)
        assert out.shape[1] in (space.shape[0], 2 * space.shape[0])  # twice: a learnt variance
        assert (out.shape[0], *out.shape[2:]) == (rows, *space.shape[1:])
    else:
        pytest.fail(f"{name} is a network of role {network.role!r}: say here what its answer looks like")
    assert out.dtype == torch.float32 and out.isfinite().all() and out.std() > 0
    if hasattr(network, "prepare"):
        with torch.no_grad():
            close(network(x, torch.linspace(0, 1000, rows), network.prepare(cond)), out)


@pytest.mark.parametrize("name", tiny.names("generators"))
def test_padding_is_not_heard(name: str) -> None:
    """Neither how much padding there is nor what stands in it; nor the rows beside."""
    model = tiny.model(generator=name)
    cond, rows = model.text_encoder.encode(tiny.PROMPTS[:4]), 4
    if cond.mask_BL is None:
        pytest.xfail("this text encoder pads nothing")
    longest = model.text_encoder.gives.context_length
    junk = {port: torch.full_like(getattr(cond, port)[:, :1], 7).expand(-1, longest - cond.mask_BL.shape[1], *getattr(cond, port).shape[2:])
            for port in SEQUENCES if getattr(cond, port) is not None}  # fmt: skip
    junk["mask_BL"] = torch.zeros(rows, longest - cond.mask_BL.shape[1], dtype=torch.bool)
    padded = dataclasses.replace(cond, **{port: torch.cat([getattr(cond, port), tail], dim=1) for port, tail in junk.items()})
    if cond.tokens_BLD is not None:
        padded = dataclasses.replace(padded, tokens_BLD=padded.tokens_BLD.masked_fill(~padded.mask_BL[..., None], 1e4))
    x, clock = Rng.of_seeds(range(rows)).normal("x", model.decoder.latent.shape), torch.linspace(10, 990, rows)
    with torch.no_grad():
        out = model.generator.network(x, clock, cond)
        close(model.generator.network(x, clock, padded), out)
        for i in range(rows):
            close(model.generator.network(x[i : i + 1], clock[i : i + 1], cond.rows([i])), out[i : i + 1])


# --- panel 3 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.names("decoders"))
def test_a_decoder_speaks_its_latent_space(name: str) -> None:
    panel = tiny.awake(tiny.build("decoders", name)).eval()
    assert isinstance(panel, Decoder) and dataclasses.is_dataclass(panel.Sampling)
    images, space = tiny.batch(3).images_BCHW, panel.latent
    assert space.fingerprint and space.shape
    with torch.no_grad():
        z = panel.encode(images)
        out = panel.decode(z, rng=Rng.of_seeds(range(3)))
    assert z.shape == (3, *space.shape)
    if space.kind in ("grid", "scales"):
        assert z.dtype == torch.int64 and z.min() >= 0 and z.max() < space.vocab
    else:
        assert z.dtype == torch.float32 and z.isfinite().all()
        close(space.standardise(space.restore(z)), z)
    assert out.shape == (3, 3, panel.image_size, panel.image_size) and out.dtype == torch.float32
    assert out.isfinite().all() and out.abs().max() <= 1
    assert torch.equal(panel.encode(images), z), "encoding is deterministic"
    assert torch.equal(panel.decode(z, rng=Rng.of_seeds(range(3))), out)


@pytest.mark.parametrize("name", tiny.names("decoders"))
def test_pictures_do_not_depend_on_those_beside_them(name: str) -> None:
    panel = tiny.awake(tiny.build("decoders", name)).eval()
    images = tiny.batch(4).images_BCHW
    with torch.no_grad():
        z = panel.encode(images)
        out = panel.decode(z, rng=Rng.of_seeds(range(4)))
        for i in range(4):
            row = slice(i, i + 1)
            close(panel.encode(images[row]), z[row])
            close(panel.decode(z[row], rng=Rng.of_seeds([i])), out[row])


# --- the eyes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.names("vision"))
def test_eyes_see_each_picture_by_itself(name: str) -> None:
    """One vector a picture at least; whatever else a family can, row by row and together are the same."""
    panel, text_encoder = listening(name)
    sight, shown = Eyes(panel.eval(), text_encoder).sight(batch_size=3), tiny.batch(4)
    assert shown.images_BCHW is not None
    asks = {"features": "pooled", "image": "encode_image", "probabilities": "classify"}
    able = {what: getattr(sight, what) for what, needs in asks.items() if hasattr(panel, needs)}
    assert "features" in able, f"{name} has no `pooled`: no distance can look through it"
    for what, ask in able.items():
        out = ask(shown.images_BCHW)
        assert out.ndim == 2 and len(out) == 4 and out.dtype == torch.float32 and out.isfinite().all() and out.std() > 0, what
        for i in range(4):
            close(ask(shown.images_BCHW[i : i + 1]), out[i : i + 1])
    if hasattr(panel, "detect"):
        logits_BQC, boxes_BQ4 = sight.detect(shown.images_BCHW)
        assert logits_BQC.shape[:2] == boxes_BQ4.shape[:2] and boxes_BQ4.shape[2] == 4 and 0 <= boxes_BQ4.min() <= boxes_BQ4.max() <= 1
        for i in range(4):
            alone = sight.detect(shown.images_BCHW[i : i + 1])
            close(alone[0], logits_BQC[i : i + 1]), close(alone[1], boxes_BQ4[i : i + 1])


@pytest.mark.parametrize("name", [name for name in tiny.names("vision") if getattr(catalog.family("vision", name), "role", "") == "critic"])
def test_a_critic_scores_each_picture_by_itself(name: str) -> None:
    panel, text_encoder = listening(name)
    shown, clock = tiny.batch(4), torch.zeros(4)
    assert shown.images_BCHW is not None
    with torch.no_grad():
        cond = dataclasses.replace(text_encoder.encode(shown.prompts), label_B=torch.arange(4))  # a critic hears words or labels
        pixels = Eyes(panel, text_encoder).preprocess(shown.images_BCHW)
        score = panel(pixels, clock, cond)
        assert score.shape == (4,) and score.isfinite().all() and score.std() > 0
        for i in range(4):
            close(panel(pixels[i : i + 1], clock[:1], cond.rows([i])), score[i : i + 1])


# --- training -----------------------------------------------------------------------------------------------------------


def descend(task: Task, steps: int) -> list[float]:
    """Losses of the last phase over one batch whose draws never change."""
    shown, optimizers, seen = tiny.batch(4), {}, []
    rng = Rng.of_samples(0, shown.index)
    for step in range(steps):
        for phase in task.plan(step):
            optimizer = optimizers.setdefault(phase, torch.optim.AdamW(task.trainable(phase).values(), lr=1e-2))
            loss = task.losses(shown, phase, step, rng)["loss"]
            task.modules.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            task.after_step(phase, step)
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_every_parameter_gets_a_gradient(training: tiny.Training) -> None:
    """All that is trainable learns, in one of the phases, and nothing else does."""
    task = training.build()
    tiny.awake(task.modules)
    task.modules.train()
    shown, reached = tiny.batch(4), set()
    own = dict(task.modules.named_parameters())
    for phase in dict.fromkeys(task.plan(0)):
        trained = task.trainable(phase)
        assert trained and all(own[name] is parameter for name, parameter in trained.items())
        task.modules.zero_grad(set_to_none=True)
        task.losses(shown, phase, 0, Rng.of_samples(0, shown.index))["loss"].backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None, f"{name}: no gradient"
            assert parameter.grad.isfinite().all(), name
            if parameter.grad.any() or name.endswith("key.bias"):  # softmax does not feel a constant added to all scores
                reached.add(name)
    every = {name for phase in task.plan(0) for name in task.trainable(phase)}
    assert every == reached, f"gradients are zero: {sorted(every - reached)[:5]}"


@pytest.mark.parametrize(("kind", "name"), tiny.families(*tiny.PANELS))
def test_no_parameter_is_left_out_of_training(kind: str, name: str) -> None:
    """What one task of a family leaves alone, another trains."""
    place = {"text_encoders": "text_encoder", "generators": "generator", "decoders": "decoder", "vision": "vision"}[kind]
    tasks = [training.build() for training in TRAININGS if (training.kind, training.name) == (kind, name)]
    if not tasks and kind == "text_encoders" and list(tiny.build(kind, name).parameters()):
        tasks = [tiny.beside(name)]
    trained = {parameter for task in tasks for phase in task.plan(0) for parameter in task.trainable(phase)}
    for task in tasks:
        assert {f"{place}.{one}" for one, _ in task.panels()[place].named_parameters()} <= trained
    if not tasks:
        neighbours = {"condition": ConditionSpec(pooled=32)} if kind == "vision" else {}
        assert not list(tiny.build(kind, name, **neighbours).parameters()), f"{name} has parameters, and nothing that trains them"


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_one_batch_can_be_learnt_by_heart(training: tiny.Training) -> None:
    task = training.build()
    tiny.awake(task.modules)
    task.modules.train()
    seen = descend(task, 30)
    assert sum(seen[-3:]) < 0.6 * sum(seen[:3]), [round(loss, 3) for loss in seen]


@pytest.mark.parametrize("training", TRAININGS, ids=str)
def test_losses_are_a_function_of_their_draws(training: tiny.Training) -> None:
    task = training.build()
    tiny.awake(task.modules)
    shown = tiny.batch(4)
    rng, other = Rng.of_samples(0, shown.index), Rng.of_samples(1, shown.index)
    for phase in dict.fromkeys(task.plan(0)):
        with torch.no_grad():
            one, same = (task.losses(shown, phase, 0, rng) for _ in range(2))
            assert torch.equal(one["loss"], same["loss"]) and one["loss"].ndim == 0
            if training.kind == "generators":
                assert not torch.equal(one["loss"], task.losses(shown, phase, 0, other)["loss"]), "no draw reaches the loss"
    assert task.plan(5) == task.plan(5)
    held_out = task.validate(shown)
    assert "loss" in held_out and all(value.shape == (4,) and value.isfinite().all() for value in held_out.values())
    assert all(torch.equal(value, task.validate(shown)[name]) for name, value in held_out.items()), "held-out draws change"
    shows = task.preview([Prompt(text="a red circle")], shown)
    assert shows is None or (shows.ndim == 4 and shows.isfinite().all() and shows.abs().max() <= 1)
