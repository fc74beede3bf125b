"""Distances of clouds of features: against extended precision, scipy's root, torchmetrics, brute force, and closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triptych.contracts import Prompt
from triptych.judges._kernels import inside, kid
from triptych.judges._moments import Moments, _by_eigenvalues, frechet, gaussian_of, root_trace
from triptych.judges._samples import Reservoir, bootstrap_mean, counts
from triptych.judges.distribution import Cloud, Config, Distribution


def rows(n: int, width: int, seed: int, decay: float = 0.0) -> Tensor:
    """Correlated float64 rows; with `decay` the spectrum falls by that many powers of ten."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64)).Q * 10.0 ** -torch.linspace(0, decay, width)
    return torch.randn(n, width, generator=g, dtype=torch.float64) @ mix + 0.3 * torch.randn(width, generator=g, dtype=torch.float64)


def exact(x: Tensor, y: Tensor) -> float:
    """The definition in 60 digits, tr (A B)^1/2 from the symmetric A^1/2 B A^1/2."""
    with mpmath.workdps(60):

        def moments(rows_ND: Tensor) -> tuple[Any, Any]:
            values = mpmath.matrix(rows_ND.tolist())
            n, width = values.rows, values.cols
            mean = mpmath.matrix([mpmath.fsum(values[i, j] for i in range(n)) / n for j in range(width)])
            centred = mpmath.matrix(n, width)
            for i in range(n):
                for j in range(width):
                    centred[i, j] = values[i, j] - mean[j]
            return mean, centred.T * centred / (n - 1)

        (m_a, a), (m_b, b) = moments(x), moments(y)
        values, vectors = mpmath.eigsy(a)
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        between = root * b * root
        roots = [mpmath.sqrt(max(v, 0)) for v in mpmath.eigsy((between + between.T) / 2, eigvals_only=True)]
        trace = mpmath.fsum(a[i, i] + b[i, i] for i in range(a.rows))
        return float(mpmath.fsum((m_a[i] - m_b[i]) ** 2 for i in range(a.rows)) + trace - 2 * mpmath.fsum(roots))


def streamed(x: Tensor) -> Any:
    made = Moments(x.shape[1])
    for part in x.split(7):
        made.add(part)
    return made.gaussian()


CASES = {  # N drawn, N real, width, powers of ten that the spectrum falls by
    "more pictures than features": (40, 60, 8, 0), "a spectrum of eight powers": (80, 80, 10, 4), "few drawn": (5, 60, 12, 0),
    "few real": (60, 5, 12, 0),
    "few of both": (5, 7, 12, 0), "as many as features": (12, 12, 12, 0), "a narrow one, few": (4, 90, 10, 5), "two pictures": (2, 2, 6, 0),
}  # fmt: skip


@pytest.mark.parametrize("numbers", CASES.values(), ids=CASES)
def test_frechet_against_extended_precision(numbers: tuple[int, int, int, float]) -> None:
    n, m, width, decay = numbers
    x, y = rows(n, width, 1, decay), rows(m, width, 2, decay)
    truth = exact(x, y)
    assert frechet(gaussian_of(x), gaussian_of(y)) == pytest.approx(truth, rel=1e-9)
    assert frechet(gaussian_of(y), gaussian_of(x)) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("numbers", CASES.values(), ids=CASES)
def test_streamed_moments_give_the_same(numbers: tuple[int, int, int, float]) -> None:
    """A singular covariance has lost what rows know: zeros come back as roundings, whose roots are 1e-8 each."""
    n, m, width, decay = numbers
    x, y = rows(n, width, 1, decay), rows(m, width, 2, decay)
    assert frechet(streamed(x), streamed(y)) == pytest.approx(exact(x, y), rel=1e-6)


@pytest.mark.parametrize("n", [300, 40])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_frechet_against_scipy_and_torchmetrics(n: int, decay: float) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    image = pytest.importorskip("torchmetrics.image.fid")
    x, y = rows(n, 64, 3, decay), rows(n + 20, 64, 4, decay) * 1.1 + 0.2
    mine = frechet(gaussian_of(x), gaussian_of(y))
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    apart = x.mean(0).numpy() - y.mean(0).numpy()
    theirs = image._compute_fid(x.mean(0), torch.tensor(a), y.mean(0), torch.tensor(b)).item()
    root = linalg.sqrtm(a @ b)
    by_root = (apart @ apart + np.trace(a) + np.trace(b) - 2 * np.trace(root).real).item()
    singular = n < 64
    assert mine == pytest.approx(theirs, rel=1e-5 if singular else 1e-6)  # of few pictures their roots of roundings are the difference
    if not singular:  # a singular product has no root that sqrtm could find
        assert mine == pytest.approx(by_root, rel=1e-6)


def test_few_pictures_are_scipys_root_of_the_smaller_side() -> None:
    """For N < D: tr (A B)^1/2 = tr (X Y^T Y X^T)^1/2 with centred rows, a root of a small symmetric matrix."""
    linalg = pytest.importorskip("scipy.linalg")
    x, y = rows(9, 40, 5), rows(11, 40, 6)
    a, b = (v - v.mean(0) for v in (x, y))
    product = (a @ b.T).numpy() / np.sqrt(8 * 10)
    small = np.trace(linalg.sqrtm(product @ product.T + 1e-30 * np.eye(9))).real
    assert root_trace(gaussian_of(x), gaussian_of(y)) == pytest.approx(small, rel=1e-6)


@pytest.mark.parametrize(("n", "width", "decay"), [(200, 32, 0.0), (200, 32, 6.0), (10, 32, 0.0), (32, 32, 0.0), (2, 5, 0.0)])
def test_identical_sets_are_at_no_distance(n: int, width: int, decay: float) -> None:
    x = rows(n, width, 7, decay) * 3
    for one, other in ((gaussian_of(x), gaussian_of(x)), (streamed(x), streamed(x.flip(0))), (gaussian_of(x), streamed(x))):
        value = frechet(one, other)
        assert 0 <= value <= 1e-6 * one.trace()
    assert frechet(gaussian_of(x), gaussian_of(x.flip(0))) <= 1e-12 * gaussian_of(x).trace()


def test_commuting_covariances_have_a_closed_form() -> None:
    """Diagonal A and B: d² = sum (sqrt a - sqrt b)². Blocks of the product and features that stand still are crossed too."""
    width = 1100
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(width, generator=g, dtype=torch.float64) + 0.1 for _ in range(2))
    a[3], b[5], a[9], b[9] = 0, 0, 0, 0
    one, other = (type(gaussian_of(torch.eye(3)))(mean_D=torch.zeros(width).double(), covariance_DD=v.diag()) for v in (a, b))
    assert frechet(one, other) == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-12)


def test_blocks_and_the_bound_of_error() -> None:
    x, y = rows(1500, 700, 8), rows(1400, 700, 9)
    a, b = gaussian_of(x), gaussian_of(y)
    fast = _by_eigenvalues(a, b)
    slow = torch.linalg.svdvals(a.factor() @ b.factor().T).sum().item()
    assert fast == pytest.approx(slow, rel=1e-12)
    steep = gaussian_of(rows(300, 64, 10, 9.0))
    assert _by_eigenvalues(steep, steep) is None, "roots of roundings are not trusted"


def test_moments_do_not_depend_on_the_pieces() -> None:
    x = rows(1300, 9, 11) + 1e4  # far from 0, where E[x²] - E[x]² would lose eight digits
    whole, pieces = Moments(9), Moments(9)
    whole.add(x)
    for part in x.split([1, 0, 700, 99, 500]):
        pieces.add(part)
    truth = torch.cov(x.T)
    for made in (whole, pieces):
        torch.testing.assert_close(made.gaussian().covariance_DD, truth, rtol=1e-10, atol=1e-10)
        assert made.n == 1300
    with pytest.raises(ValueError, match="two pictures"):
        Moments(3).gaussian()


# --- KID, precision, recall ---------------------------------------------------------------------------------------------


def brute_kid(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    within = [np.mean([k(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j]) for v in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_kid_against_brute_force_and_torchmetrics() -> None:
    x, y = rows(12, 6, 1).float(), rows(12, 6, 2).float()
    value, shares = kid(x, y, subsets=5, size=50, seed=0)
    assert value == pytest.approx(brute_kid(x.numpy(), y.numpy()), rel=1e-5) and len(shares) == 12
    theirs = pytest.importorskip("torchmetrics.image.kid").poly_mmd(x, y).item()
    assert value == pytest.approx(theirs, rel=1e-4)


def test_kid_of_subsets_is_seeded_and_without_bias() -> None:
    x, y = rows(400, 8, 1).float(), rows(300, 8, 1).float()
    one, _ = kid(x, y, subsets=20, size=50, seed=0)
    assert one == kid(x, y, subsets=20, size=50, seed=0)[0] != kid(x, y, subsets=20, size=50, seed=1)[0]
    whole, _ = kid(x[:300], y, subsets=1, size=300, seed=0)
    assert kid(x[:300], y, subsets=400, size=50, seed=0)[0] == pytest.approx(whole, abs=0.1)
    same = [kid(*rows(100, 4, seed).float().split(50), subsets=1, size=50, seed=0)[0] for seed in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 40**0.5 and min(same) < 0


def test_reach_against_brute_force() -> None:
    points, cloud = rows(30, 5, 1).float(), rows(25, 5, 1).float() * 0.8
    far = np.linalg.norm(cloud.numpy()[:, None] - cloud.numpy()[None], axis=-1)
    reach = np.sort(far, axis=1)[:, 3]  # the first is oneself
    truth = (np.linalg.norm(points.numpy()[:, None] - cloud.numpy()[None], axis=-1) <= reach).any(1)
    assert inside(points, cloud, 3).tolist() == truth.tolist() and 0 < truth.mean() < 1
    assert inside(cloud, cloud, 3).all(), "everyone lies in his own reach"
    with pytest.raises(ValueError, match="more than 3"):
        inside(points, cloud[:3], 3)


# --- reservoir and bootstrap --------------------------------------------------------------------------------------------


def test_reservoir_is_fair_and_does_not_see_the_pieces() -> None:
    stream = torch.arange(50.0)[:, None]
    kept = torch.zeros(50)
    for seed in range(400):
        one = Reservoir(10, seed)
        one.add(stream)
        kept[one.rows()[:, 0].long()] += 1
    assert kept.sum() == 4000 and kept.min() > 45 and kept.max() < 120  # 80 +- 8
    whole, pieces = Reservoir(10, 3), Reservoir(10, 3)
    whole.add(stream)
    for part in stream.split([4, 9, 1, 0, 36]):
        pieces.add(part)
    assert torch.equal(whole.rows(), pieces.rows()) and pieces.seen == 50


def test_bootstrap_covers_a_mean() -> None:
    found = []
    for seed in range(100):
        values = torch.randn(80, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = bootstrap_mean(values, 200, seed)
        found.append(low <= 0 <= high)
    assert 0.87 <= np.mean(found) <= 0.99
    assert all(torch.equal(a, b) for a, b in zip(counts(9, 3, 1), counts(9, 3, 1), strict=True))
    assert sum(int(drawn.sum()) for drawn in counts(9, 3, 1)) == 27


# --- the judge ----------------------------------------------------------------------------------------------------------


class Eyes(nn.Module):
    """A fixed random projection of small pictures, and a softmax over some of it."""

    name = "projection"

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3 * 16, width, generator=g) / 7)
        self.num_features = width

    def features(self, images_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images_BCHW, 4).flatten(1) @ self.weight

    def probabilities(self, images_BCHW: Tensor) -> Tensor:
        return (4 * self.features(images_BCHW)[:, :5]).softmax(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


class Classes(Eyes):
    def forward(self, images: Tensor) -> Tensor:
        return 4 * self.features(images)[:, :5]


def pictures(n: int, seed: int, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 3, 4, 4, generator=g) + shift).clamp(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)


def judged(config: Config, drawn: Tensor, real: Tensor, pieces: int = 13, **decided: Any) -> Distribution:
    judge = Distribution(config, eyes=Eyes(), **decided)
    for part in drawn.split(pieces):
        judge.add(part, [Prompt()] * len(part))
    for part in real.split(pieces + 4):
        judge.add(drawn[:0], [], part)
    return judge


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics says how much it keeps
def test_judge_against_torchmetrics() -> None:
    fid, inception, kernel = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "inception", "kid"))
    drawn, real = pictures(90, 0, 0.2), pictures(90, 1)
    found = judged(Config(reservoir=200), drawn, real).result()
    theirs = fid.FrechetInceptionDistance(feature=Eyes())  # a network of one's own is given the pictures as they are
    distance = kernel.KernelInceptionDistance(feature=Eyes(), subset_size=90, subsets=1)
    score = inception.InceptionScore(feature=Classes(), splits=1)
    for metric in (theirs, distance):
        metric.update(drawn, False)
        metric.update(real, True)
    score.update(drawn)
    assert found["FD(projection)"] == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert found["IS(projection)"] == pytest.approx(score.compute()[0].item(), rel=1e-5)
    assert found["KID(projection)"] == pytest.approx(distance.compute()[0].item(), rel=1e-4)
    assert found["n"] == found["reservoir"] == found["n_references"] == 90


def test_one_look_serves_all_scores() -> None:
    class OneLook(Eyes):
        looks = 0

        def features(self, images_BCHW: Tensor) -> Tensor:
            self.looks += 1
            return super().features(images_BCHW)

        def features_and_probabilities(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
            features = self.features(images_BCHW)
            return features, (4 * features[:, :5]).softmax(1)

    drawn, real = pictures(40, 0, 0.2), pictures(40, 1)
    judge = Distribution(Config(resamples=3), eyes=OneLook())
    judge.add(drawn, [], real)
    assert judge.result() == pytest.approx(judged(Config(resamples=3), drawn, real).result(), rel=1e-5)
    assert judge.eyes.looks == 2


def test_judge_orders_what_is_worse_and_says_how_sure_it_is() -> None:
    real = pictures(300, 1)
    results = [judged(Config(resamples=8), pictures(300, 0, shift), real).result() for shift in (0.0, 0.15, 0.5)]
    for name in ("FD(projection)", "KID(projection)"):
        a, b, c = (found[name] for found in results)
        assert a < b < c
        assert all(found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] for found in results)
        assert results[0][f"{name}_high"] < results[2][f"{name}_low"]
    assert results[0]["precision(projection)"] > results[2]["precision(projection)"]
    assert results[0]["recall(projection)"] > 0.7
    assert judged(Config(resamples=8), pictures(300, 0), real, pieces=29).result() == pytest.approx(results[0], rel=1e-5)


@pytest.mark.parametrize("name", ["FD(projection)", "KID(projection)", "IS(projection)"])
def test_intervals_are_as_wide_as_the_scores_scatter(name: str) -> None:
    """Against 40 independent sets of drawn pictures."""
    config, real = Config(resamples=20, scores=("FD", "KID", "IS"), kid_subsets=1), pictures(400, 1)
    results = [judged(config, pictures(400, seed, 0.2), real).result() for seed in range(10, 50)]
    scatter = np.std([found[name] for found in results], ddof=1)
    told = np.mean([(found[f"{name}_high"] - found[f"{name}_low"]) / 2 / 1.96 for found in results])
    assert 0.75 < told / scatter < 1.35


def test_memory_ends_at_the_reservoir_and_all_pictures_count() -> None:
    drawn, real = pictures(200, 0, 0.2), pictures(200, 1)
    small, whole = (judged(Config(reservoir=size, resamples=0), drawn, real) for size in (40, 400))
    a, b = small.result(), whole.result()
    assert a["n"] == 200 and a["reservoir"] == 40 and small.drawn.kept.rows().shape == (40, 12)
    assert a["FD(projection)"] == pytest.approx(b["FD(projection)"], rel=1e-9)
    assert a["IS(projection)"] == pytest.approx(b["IS(projection)"], rel=1e-9)
    assert a["KID(projection)"] != b["KID(projection)"] and "FD(projection)_low" not in a


@pytest.mark.parametrize("n", [8, 60, 200])
def test_saved_statistics_stand_for_the_references(n: int, tmp_path: Path) -> None:
    drawn, real, path = pictures(50, 0, 0.2), pictures(n, 1), tmp_path / "real.safetensors"
    config = Config(reservoir=100, resamples=4, kid_size=20)
    judge = judged(config, drawn, real)
    judge.references.save(path)
    again = judged(config, drawn, real[:0], statistics=path)
    assert again.result() == pytest.approx(judge.result(), rel=1e-9)
    with pytest.raises(ValueError, match=r"'projection', not through 'other'"):
        Cloud.load(path, "other", 10, 0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="safetensors"):
        Cloud.load(path, "projection", 10, 0)


def test_names_and_refusals() -> None:
    drawn, real = pictures(20, 0), pictures(20, 1)
    judge = judged(Config(resamples=0), drawn, real)
    judge.eyes.is_inception = True
    assert {"FID", "KID", "IS", "precision", "recall"} <= judge.result().keys()
    alone = judged(Config(resamples=0), drawn, real[:0])
    assert {"n", "IS(projection)"} <= alone.result().keys() and "FD(projection)" not in alone.result()
    with pytest.raises(ValueError, match="no score 'FVD'"):
        Distribution(Config(scores=("FVD",)), eyes=Eyes())
    with pytest.raises(ValueError, match="real pictures"):
        judged(Config(scores=("FD",)), drawn, real[:0]).result()
    with pytest.raises(ValueError, match="not finite"):
        judge.add(drawn * float("nan"))
    with pytest.raises(ValueError, match="width 3"):
        judge.drawn.add(torch.zeros(2, 3))
